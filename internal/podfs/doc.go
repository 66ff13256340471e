package podfs
