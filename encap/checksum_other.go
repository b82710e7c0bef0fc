//go:build !amd64

package encap

const vectorMin = never

func sumVectors(*byte, int) uint64 { return 0 }
