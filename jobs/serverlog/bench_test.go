package serverlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

// reads is a log of audited reads by key, as jsonlog has it.
func reads(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, `{"timestamp":"2026-11-21 22:23:%02d.%03d UTC","user":"custody_reports","dbname":"custody","pid":%d,"remote_host":"127.0.0.1","remote_port":%d,"session_id":"6b0219e6.%x","line_num":%d,"ps":"SELECT","session_start":"2026-11-21 22:23:34 UTC","vxid":"3/%d","txid":0,"error_severity":"LOG","message":"AUDIT: SESSION,%d,1,READ,SELECT,TABLE,custody_data.user_profiles,\"select name, email from custody_data.user_profiles where tenant_id = 'acme' and identity_id = '5d0b%08x' and status = \"\"x\"\";\",<not logged>","func_name":"log_audit_event","file_name":"pgaudit.c","file_line_num":783,"application_name":"pgbench","backend_type":"client backend","query_id":3328825264046802572}`+"\n",
			i/1000%60, i%1000, 7000+i%64, 40000+i%64, 7000+i%64, i/64+1, i, i/64+1, i)
	}
	return b.Bytes()
}

// perCPU reports MB for each second of processor time: other programs do not count.
func perCPU(b *testing.B, size int) {
	var before syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	b.Cleanup(func() {
		var after syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		b.ReportMetric(float64(b.N)*float64(size)/1e6/(float64(spent)/1e9), "MB/cpu-s")
	})
}

// convert is what a shipper does with a log: records, their order, events.
func convert(log io.Reader, format Format, out io.Writer) (Counts, error) {
	r := NewReader(log, Options{Format: format, Complete: true})
	e := NewEncoder(EncoderOptions{})
	s := NewSequence(SequenceOptions{})
	var record Record
	var b []byte
	var found []Finding
	for {
		if err := r.Next(&record); errors.Is(err, io.EOF) {
			_, err = out.Write(b)
			return r.Counts(), err
		} else if err != nil {
			return r.Counts(), err
		}
		found = s.Check(found[:0], &record)
		e.Read(&record)
		b = append(e.Append(b, &Context{Actor: "5d0b1c1e-7a63-4d62-9d0c-0a1b2c3d4e5f", Tenant: "acme", Purpose: "treatment"}), '\n')
		if len(b) > 1<<16 {
			if _, err := out.Write(b); err != nil {
				return r.Counts(), err
			}
			b = b[:0]
		}
	}
}

func BenchmarkConvert(b *testing.B) {
	csv := sample(b, "sample.csv")
	for _, c := range []struct {
		name   string
		log    []byte
		format Format
	}{
		{"reads", reads(16 << 20), JSON},
		{"sample-json", bytes.Repeat(sample(b, "sample.json"), 100), JSON},
		{"sample-csv", bytes.Repeat(csv, 100), CSV},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.log)))
			perCPU(b, len(c.log))
			b.ReportAllocs()
			for b.Loop() {
				counts, err := convert(bytes.NewReader(c.log), c.format, io.Discard)
				if err != nil || counts.Broken+counts.TooLong+counts.Cut > 0 {
					b.Fatal(err, counts)
				}
			}
		})
	}
}

func BenchmarkReader(b *testing.B) {
	log := reads(16 << 20)
	b.SetBytes(int64(len(log)))
	perCPU(b, len(log))
	var record Record
	for b.Loop() {
		r := NewReader(bytes.NewReader(log), Options{Complete: true})
		for r.Next(&record) == nil {
		}
	}
}

// The limits: lines alone, and encoding/json into the same fields.
func BenchmarkScanner(b *testing.B) {
	log := reads(16 << 20)
	b.SetBytes(int64(len(log)))
	perCPU(b, len(log))
	for b.Loop() {
		for s := bufio.NewScanner(bytes.NewReader(log)); s.Scan(); {
		}
	}
}

func BenchmarkEncodingJSON(b *testing.B) {
	log := reads(4 << 20)
	b.SetBytes(int64(len(log)))
	perCPU(b, len(log))
	for b.Loop() {
		for s := bufio.NewScanner(bytes.NewReader(log)); s.Scan(); {
			var r struct {
				Timestamp       string `json:"timestamp"`
				User            string `json:"user"`
				DBName          string `json:"dbname"`
				PID             int64  `json:"pid"`
				RemoteHost      string `json:"remote_host"`
				RemotePort      int64  `json:"remote_port"`
				SessionID       string `json:"session_id"`
				LineNum         int64  `json:"line_num"`
				PS              string `json:"ps"`
				SessionStart    string `json:"session_start"`
				VXID            string `json:"vxid"`
				TXID            int64  `json:"txid"`
				ErrorSeverity   string `json:"error_severity"`
				Message         string `json:"message"`
				FuncName        string `json:"func_name"`
				FileName        string `json:"file_name"`
				FileLineNum     int64  `json:"file_line_num"`
				ApplicationName string `json:"application_name"`
				BackendType     string `json:"backend_type"`
				QueryID         int64  `json:"query_id"`
			}
			if err := json.Unmarshal(s.Bytes(), &r); err != nil {
				b.Fatal(err)
			}
		}
	}
}
