package bpftest
