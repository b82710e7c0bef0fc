package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The files of a report.
const (
	jsonFile     = "report.json"
	markdownFile = "report.md"
	chartFile    = "report.svg"
)

// Write makes the files in the directory, which is made if missing.
func (r *Report) Write(dir string, results []Result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, jsonFile), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := r.Chart(filepath.Join(dir, chartFile)); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, markdownFile))
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := errors.Join(r.Markdown(f, chartFile, results), f.Close()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// Read reads the report that Write left in the directory.
func Read(dir string) (*Report, error) {
	text, err := os.ReadFile(filepath.Join(dir, jsonFile))
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	r := &Report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	r.Finish()
	return r, nil
}
