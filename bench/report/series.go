package report

import (
	"encoding/json"
	"math"
	"slices"
)

// Series is the values of the repetitions; NaN stands for one that failed.
type Series []float64

// set stores a value, whatever came before it.
func (s Series) set(i int, v float64) Series {
	for len(s) <= i {
		s = append(s, math.NaN())
	}
	s[i] = v
	return s
}

// ratio divides the values that both series have.
func (s Series) ratio(by Series) Series {
	var out Series
	for i := range min(len(s), len(by)) {
		if by[i] != 0 {
			out = out.set(i, s[i]/by[i])
		}
	}
	return out
}

// minus subtracts where both series have values.
func (s Series) minus(o Series) Series {
	var out Series
	for i := range min(len(s), len(o)) {
		out = out.set(i, s[i]-o[i])
	}
	return out
}

// spread returns nil if there are no values.
func (s Series) spread() *Spread {
	known := slices.DeleteFunc(slices.Clone(s), math.IsNaN)
	if len(known) == 0 {
		return nil
	}
	slices.Sort(known)
	n := len(known)
	return &Spread{Median: (known[(n-1)/2] + known[n/2]) / 2, Min: known[0], Max: known[n-1], N: n}
}

// MarshalJSON writes null for what failed, since JSON has no NaN.
func (s Series) MarshalJSON() ([]byte, error) {
	out := make([]*float64, len(s))
	for i, v := range s {
		if !math.IsNaN(v) {
			out[i] = &v
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Series) UnmarshalJSON(b []byte) error {
	var in []*float64
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*s = nil
	for i, v := range in {
		if v == nil {
			*s = s.set(i, math.NaN())
			continue
		}
		*s = s.set(i, *v)
	}
	return nil
}

// Spread is the middle and the ends of N values.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}
