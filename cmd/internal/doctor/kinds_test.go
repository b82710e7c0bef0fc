package doctor

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Each kind of finding is named by a test that makes the fault between hosts.
func TestKindsAreMade(t *testing.T) {
	kinds, made := kindsOf(t), map[string]bool{}
	isNone := func(word string) bool { return kinds[word].Line == 0 }
	for _, f := range parse(t, "../../../bench/e2e/doctor/*_test.go") {
		ast.Inspect(f, func(n ast.Node) bool {
			text, _ := literal(n)
			if words := strings.Fields(text); !slices.ContainsFunc(words, isNone) { // it isn't prose
				for _, kind := range words {
					made[kind] = true
				}
			}
			return true
		})
	}
	if len(kinds) < 40 {
		t.Errorf("the source has only %d kinds", len(kinds))
	}
	for kind, at := range kinds {
		if !made[kind] {
			t.Errorf("%s: no test of bench/e2e/doctor makes %q", at, kind)
		}
	}
}

// kindsOf are the kinds that the package's source gives findings, and where.
func kindsOf(t *testing.T) map[string]token.Position {
	t.Helper()
	kinds := map[string]token.Position{}
	take := func(e ast.Expr) {
		at := files.Position(e.Pos())
		if sum, is := e.(*ast.BinaryExpr); is {
			if prefix, _ := literal(sum.X); prefix == "host-" {
				kinds["host-forwarding"] = at // one part of the host stands for all
				return
			}
		}
		if name, is := e.(*ast.Ident); is && name.Name == "kind" {
			return // what is put there is taken
		}
		kind, is := literal(e)
		if !is {
			t.Errorf("%s: which kind is it?", at)
		}
		kinds[kind] = at
	}
	for _, f := range parse(t, "*.go") {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				if key, is := n.Key.(*ast.Ident); is && key.Name == "Kind" {
					take(n.Value)
				}
			case *ast.AssignStmt:
				for i, to := range n.Lhs {
					if isKind(to) {
						take(n.Rhs[i])
					}
				}
			case *ast.CallExpr:
				called, _ := n.Fun.(*ast.SelectorExpr)
				switch {
				case called == nil:
				case called.Sel.Name == "add" && len(n.Args) == 5, called.Sel.Name == "firewalled":
					take(n.Args[1])
				}
			}
			return true
		})
	}
	return kinds
}

var files = token.NewFileSet()

// parse reads Go files; of this package, those that aren't tests.
func parse(t *testing.T, pattern string) (parsed []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %d files", pattern, err, len(paths))
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(pattern, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
	}
	return parsed
}

// literal is the text of a constant in the source.
func literal(n ast.Node) (string, bool) {
	lit, is := n.(*ast.BasicLit)
	if !is || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// isKind tells whether what is assigned to is a finding's kind.
func isKind(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.Ident:
		return n.Name == "kind"
	case *ast.SelectorExpr:
		return n.Sel.Name == "Kind"
	}
	return false
}
