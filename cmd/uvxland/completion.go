package main

import (
	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/completion"
	"uvxlan/tunnel/device"
)

// program is this one as completions see it.
func program() completion.Program {
	_, fs := define()
	return completion.Program{Name: "uvxland", Commands: []completion.Command{{Flags: fs, Choices: map[string][]string{
		"device-driver":        {string(device.DriverAuto), string(device.DriverNative), string(device.DriverWireGuard), string(device.DriverWater)},
		"fast-path":            {string(attach.Auto), string(attach.On), string(attach.Off)},
		"offload":              {"auto", "on", "off"},
		"stored-lease-expired": {"wait", "use"},
		"v":                    {"0", "1"},
	}}}}
}
