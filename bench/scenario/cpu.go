package scenario

import (
	"time"

	"uvxlan/bench/procstat"
)

// usage is CPU time.
type usage struct {
	// all is that of the whole machine: much of what packets cost is spent in
	// interrupts, which belong to no process.
	all time.Duration
	// processes is that of the data path's own processes.
	processes time.Duration
}

func (u usage) since(before usage) usage {
	return usage{u.all - before.all, u.processes - before.processes}
}

// measure reads the CPU time used until now.
func measure(pids []int) (usage, error) {
	cpu, err := procstat.ReadCPU()
	if err != nil {
		return usage{}, err
	}
	u := usage{all: cpu.Busy}
	for _, pid := range pids {
		used, err := procstat.ReadProcess(pid)
		if err != nil {
			return usage{}, err
		}
		u.processes += used
	}
	return u, nil
}
