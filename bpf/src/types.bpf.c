// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

// Maps of many types, with keys and values of every shape that BTF describes. The program uses two of them; the others
// are created where a volume asks for them by name.

#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum color {
	RED,
	GREEN = 5,
	BLUE = 6,
};

enum temperature {
	COLD = -1,
	WARM = 1,
};

struct point {
	__s32 x;
	__s32 y;
};

typedef struct point point_t;

struct shapes_key {
	__u32 id;
	char tag[4];
};

struct shapes {
	__u8 u8;
	__u16 u16;
	__u32 u32;
	__u64 u64;
	__s8 s8;
	__s16 s16;
	__s32 s32;
	__s64 s64;
	_Bool flag;
	char letter;
	char name[16];
	unsigned char raw[4];
	__be16 port;
	__be32 addr;
	__be64 wide;
	struct in6_addr addr6;
	enum color color;
	enum temperature temperature;
	struct {
		__u32 depth;
		struct {
			__u8 deeper;
		} inner;
	} nested;
	union {
		__u32 number;
		__u8 bytes[4];
	} either;
	struct {
		__u16 anonymous_a;
		__u16 anonymous_b;
	};
	__u32 bits_a : 3;
	__u32 bits_b : 13;
	__s32 bits_c : 16;
	_Bool bit_flag : 1;
	__u16 matrix[2][3];
	point_t points[2];
	enum color colors[3];
	char words[2][8];
	__be32 addrs[2];
	void *pointer;
	const volatile __u32 qualified;
};

struct lpm_key {
	__u32 prefixlen;
	__be32 addr;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct shapes_key);
	__type(value, struct shapes);
} shapes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct shapes);
} array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, struct in6_addr);
	__type(value, __u64);
} lru_hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, __be32);
	__type(value, struct point);
} percpu_hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} percpu_array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, char[8]);
	__type(value, __s64);
} lru_percpu_hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm_key);
	__type(value, __u32);
} lpm SEC(".maps");

// No BTF: only sizes.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(key_size, 6);
	__uint(value_size, 3);
} untyped SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ringbuf SEC(".maps");

// User space is expected to set the size.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
} ringbuf_unsized SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf_event_array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} prog_array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4);
	__type(value, __u32);
} queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 4);
	__type(value, __u32);
} stack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16);
	__uint(key_size, 4);
	__uint(value_size, 8 * 127);
} stack_trace SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 16);
	__type(value, __u32);
} bloom_filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} cpumap SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} hash_of_maps SEC(".maps");

SEC("xdp")
int touch(struct xdp_md *ctx)
{
	struct shapes_key key = {.id = 1, .tag = "tag"};
	struct shapes *value = bpf_map_lookup_elem(&shapes, &key);
	__u32 index = 0;

	if (value)
		__sync_fetch_and_add(&value->u64, 1);
	value = bpf_map_lookup_elem(&array, &index);
	if (value)
		__sync_fetch_and_add(&value->u64, 1);
	return XDP_PASS;
}
