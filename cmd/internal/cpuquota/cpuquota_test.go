package cpuquota

import (
	"math"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	mountV2  = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1  = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
	unified  = "40 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	attached = "33 31 0:30 /docker/ab\\040c /sys/fs/cgroup/cpu ro master:4 - cgroup cgroup rw,cpu\n" // a container that sees the host's paths
)

func TestRead(t *testing.T) {
	none := math.Inf(1)
	for _, c := range []struct {
		name, cgroup, mounts string
		files                map[string]string
		want                 float64
	}{
		{"no cgroups", "", "", nil, none},
		{"v2", "0::/a\n", mountV2, map[string]string{"a/cpu.max": "150000 100000\n"}, 1.5},
		{"v2 unlimited", "0::/a\n", mountV2, map[string]string{"a/cpu.max": "max 100000\n"}, none},
		{"v2 at its root", "0::/\n", mountV2, nil, none},
		{"v2 in a container", "0::/\n", mountV2, map[string]string{"cpu.max": "50000 100000"}, 0.5},
		{
			"v2, a limit above", "0::/a/b/c\n", mountV2,
			map[string]string{"a/cpu.max": "200000 100000", "a/b/c/cpu.max": "300000 100000"}, 2,
		},
		{
			"v2, a limit below", "0::/a/b\n", mountV2,
			map[string]string{"a/cpu.max": "400000 100000", "a/b/cpu.max": "300000 100000"}, 3,
		},
		{"v2 without the controller", "0::/a\n", mountV2, map[string]string{"a/memory.max": "max"}, none},
		{"v2 outside of what is mounted", "0::/../b\n", mountV2, map[string]string{"cpu.max": "50000 100000"}, none},
		{
			"v1", "5:cpu,cpuacct:/a\n", mountV1,
			map[string]string{"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 2.5,
		},
		{
			"v1 unlimited", "5:cpuacct,cpu:/a\n", mountV1,
			map[string]string{"cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, none,
		},
		{
			"v1 beside a v2 without controllers", "1:cpu:/a\n0::/b\n", unified + mountV1,
			map[string]string{"cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "50000\n"}, 2,
		},
		{
			"v1 in a container", "5:cpu:/docker/ab c/inner\n", attached,
			map[string]string{"cpu/inner/cpu.cfs_quota_us": "50000", "cpu/inner/cpu.cfs_period_us": "100000"}, 0.5,
		},
		{"v1 that isn't mounted", "5:cpu:/a\n", unified, nil, none},
		{"cpuset is no quota", "5:cpuset:/a\n", mountV1, nil, none},
	} {
		root := fstest.MapFS{}
		if c.cgroup != "" {
			root["proc/self/cgroup"] = &fstest.MapFile{Data: []byte(c.cgroup)}
			root["proc/self/mountinfo"] = &fstest.MapFile{Data: []byte(c.mounts)}
		}
		for name, text := range c.files {
			root["sys/fs/cgroup/"+name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got, err := read(root); got != c.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	root := fstest.MapFS{
		"proc/self/cgroup":      {Data: []byte("0::/\n")},
		"proc/self/mountinfo":   {Data: []byte(mountV2)},
		"sys/fs/cgroup/cpu.max": {Data: []byte("many 100000\n")},
	}
	got, err := read(root)
	if err == nil || !strings.Contains(err.Error(), "many") || !math.IsInf(got, 1) {
		t.Errorf("%v, %v", got, err)
	}
}

// The process's own group can be read, whatever it is.
func TestReadOwn(t *testing.T) {
	if cpus, err := Read(); err != nil || cpus <= 0 {
		t.Errorf("%v, %v", cpus, err)
	}
}
