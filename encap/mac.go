package encap

import (
	"errors"
	"strconv"
)

// MAC is an Ethernet address (EUI-48) in transmission order.
type MAC [6]byte

const macTextLen = 17

// String returns the colon form in lower case, "0a:11:22:33:44:55".
func (m MAC) String() string {
	const digits = "0123456789abcdef"
	var text [macTextLen]byte
	for i, octet := range m {
		if i > 0 {
			text[3*i-1] = ':'
		}
		text[3*i] = digits[octet>>4]
		text[3*i+1] = digits[octet&0xf]
	}
	return string(text[:])
}

// ParseMAC reads the colon form: six octets of two hex digits in either case.
// The error quotes s.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != macTextLen {
		return MAC{}, macError(s)
	}
	for i := range m {
		if i > 0 && s[3*i-1] != ':' {
			return MAC{}, macError(s)
		}
		hi, lo := hexDigit(s[3*i]), hexDigit(s[3*i+1])
		if hi|lo > 0xf {
			return MAC{}, macError(s)
		}
		m[i] = hi<<4 | lo
	}
	return m, nil
}

// IsGroup reports whether m addresses a group of stations: multicast, or the
// broadcast address (IEEE 802, the I/G bit).
func (m MAC) IsGroup() bool { return m[0]&1 != 0 }

func macError(s string) error {
	return errors.New("encap: parse MAC " + strconv.Quote(s) + ": want six hex octets joined by colons")
}

// hexDigit returns the value of c, or 0xff when c is no hex digit.
func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
