// Package nearest finds the name that a misspelt one was meant to be.
package nearest

import "strings"

// Name returns the known name that takes the fewest changes to become name, and of
// several the one whose beginning is most alike. Case doesn't count. It returns ""
// if none is like it.
func Name(name string, known []string) string {
	name = strings.ToLower(name)
	best, fewest, longest := "", len(name)/3+2, 0
	for _, k := range known {
		other := strings.ToLower(k)
		n, common := changes(name, other), commonPrefix(name, other)
		if n < fewest || n == fewest && common > longest {
			best, fewest, longest = k, n, common
		}
	}
	return best
}

// changes returns how many letters must be added, removed or replaced to turn a
// into b (the Levenshtein distance).
func changes(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func commonPrefix(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
