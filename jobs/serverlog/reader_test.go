package serverlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var formats = map[Format]string{JSON: "sample.json", CSV: "sample.csv"}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return b
}

// damaged is a log with everything in it that gives no record.
func damaged(t testing.TB, format Format) []byte {
	log := sample(t, formats[format])
	records, _, _ := readAll(t, log, Options{Format: format})
	var lines [][]byte
	for _, r := range records {
		lines = append(lines, log[r.Start:r.End])
	}
	var b []byte
	b = append(b, lines[0][len(lines[0])/2:]...) // the file begins within a line
	for i, line := range lines {
		switch i {
		case 5:
			b = append(b, line[:len(line)/2]...) // torn by a crash
			b = append(b, '\n')
		case 8:
			b = append(b, line[:len(line)/3]...) // torn, and the next follows at once
		case 11:
			b = append(b, "\n\x00\x00\xff\xfe{}\n{\"\n,,,\"\n"...)
		case 14:
			big := append([]byte("person"), bytes.Repeat([]byte("x"), 5000)...)
			b = append(b, bytes.Replace(line, []byte("person"), big, 1)...) // enormous
		case 17:
			b = append(b, bytes.Replace(line, []byte("person"), []byte("p\xe9rson"), 1)...)
			continue
		}
		b = append(b, line...)
	}
	return b[:len(b)-10] // the file ends within a line
}

func describe(r *Record) string {
	var b []byte
	for _, text := range r.texts() {
		b = append(append(b, *text...), 0)
	}
	for _, n := range []int64{r.Start, r.End, r.Time.UnixNano(), r.PID, r.RemotePort, r.LineNum, r.TXID, r.InternalPosition,
		r.CursorPosition, r.FileLineNum, r.LeaderPID, r.QueryID} {
		b = append(strconv.AppendInt(b, n, 10), ' ')
	}
	return string(strconv.AppendBool(b, r.BadEncoding))
}

func all(t testing.TB, src io.Reader, o Options) (out []string) {
	o.Complete = true
	o.MaxRecord = 4096
	o.Unreadable = func(u Unreadable) { out = append(out, fmt.Sprint(u)) }
	r := NewReader(src, o)
	var record Record
	for {
		err := r.Next(&record)
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		out = append(out, describe(&record))
	}
}

func TestSplitAnywhere(t *testing.T) {
	stride := 1
	if os.Getenv("DEVSTACK_TEST_DIR") != "" {
		stride = 7 // with the race detector in `make test`
	}
	t.Parallel()
	for format := range formats {
		log := damaged(t, format)
		log = log[:bytes.Index(log, []byte("p\xe9rson"))+100] // cut behind the last damage
		o := Options{Format: format}
		want := all(t, bytes.NewReader(log), o)
		require.Equal(t, want, all(t, iotest.OneByteReader(bytes.NewReader(log)), o))
		require.Equal(t, want, all(t, iotest.DataErrReader(bytes.NewReader(log)), o))
		for at := 0; at < len(log); at += stride {
			got := all(t, io.MultiReader(bytes.NewReader(log[:at]), bytes.NewReader(log[at:])), o)
			require.True(t, slices.Equal(want, got), at)
		}
	}
}

// What is read of a file that grows, by one reader or by one after another, is
// what is read of the whole.
func TestGrowingFile(t *testing.T) {
	for format := range formats {
		log := damaged(t, format)
		want := all(t, bytes.NewReader(log), Options{Format: format})
		for seed := range uint64(20) {
			random := rand.New(rand.NewPCG(seed, 1))
			var got []string
			note := func(u Unreadable) { got = append(got, fmt.Sprint(u)) }
			options := Options{Format: format, MaxRecord: 4096, Unreadable: note}
			src := &growing{}
			r := NewReader(src, options)
			for end := 0; end < len(log); {
				end = min(len(log), end+random.IntN(6000))
				src.text = log[:end]
				if seed%2 == 0 {
					// A new process goes on where the last one stood.
					options.Offset = r.Offset()
					src.at = int(r.Offset())
					r = NewReader(src, options)
				}
				got = next(t, r, got, &got)
			}
			options.Offset, options.Complete = r.Offset(), true
			r = NewReader(bytes.NewReader(log[r.Offset():]), options)
			got = next(t, r, got, &got)
			require.Equal(t, want, got, "%v %d", format, seed)
		}
	}
}

func next(t *testing.T, r *Reader, _ []string, got *[]string) []string {
	var record Record
	for {
		err := r.Next(&record)
		if errors.Is(err, io.EOF) {
			return *got
		}
		require.NoError(t, err)
		*got = append(*got, describe(&record))
	}
}

type growing struct {
	text []byte
	at   int
}

func (g *growing) Read(b []byte) (int, error) {
	n := copy(b, g.text[g.at:])
	g.at += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func TestResumeAtAnyRecord(t *testing.T) {
	for format := range formats {
		log := damaged(t, format)
		var ends []int64
		var upTo []int
		var want []string
		o := Options{Format: format, Complete: true, MaxRecord: 4096}
		o.Unreadable = func(u Unreadable) { want = append(want, fmt.Sprint(u)) }
		r := NewReader(bytes.NewReader(log), o)
		var record Record
		for r.Next(&record) == nil {
			want = append(want, describe(&record))
			require.Equal(t, record.End, r.Offset())
			ends, upTo = append(ends, record.End), append(upTo, len(want))
		}
		require.Greater(t, len(ends), 100)
		for i, end := range ends {
			require.Equal(t, want[upTo[i]:], append([]string{}, all(t, bytes.NewReader(log[end:]), Options{Format: format, Offset: end})...), end)
		}
	}
}

// What is damaged costs its own record and no other.
func TestDamageIsBounded(t *testing.T) {
	for format, name := range formats {
		whole, _, _ := readAll(t, sample(t, name), Options{Format: format})
		log := damaged(t, format)
		records, lost, counts := readAll(t, log, Options{Format: format, MaxRecord: 4096})
		require.NotZero(t, counts.Broken)
		require.EqualValues(t, 1, counts.TooLong, name)
		require.NotZero(t, counts.Cut)
		require.EqualValues(t, 1, counts.BadEncoding)
		require.EqualValues(t, len(log), counts.Bytes)
		require.EqualValues(t, len(records), counts.Records)
		// Only the last one, which is cut.
		require.Equal(t, len(whole)-1, len(records), name)
		for i := range records {
			if records[i].BadEncoding {
				require.Equal(t, "p\xe9rson", string(records[i].User))
				continue
			}
			require.True(t, records[i].Equal(whole[i]), "%d\n%+v\n%+v", i, records[i], whole[i])
		}
		// Every byte is either in a record or reported, once.
		covered := 0
		for _, r := range records {
			covered += int(r.End - r.Start)
		}
		for _, u := range lost {
			covered += int(u.End - u.Start)
		}
		require.Equal(t, len(log), covered)
	}
}

// Beginning within a quoted text, a reader must not take for a record what
// somebody wrote into it.
func TestNothingForgedWithinAText(t *testing.T) {
	t.Parallel()
	for format, name := range formats {
		log := sample(t, name)
		require.Contains(t, string(log), "2026-11-21 22:00:00.000 UTC")
		for at := 0; at < len(log); at += 11 {
			o := Options{Format: format, Offset: int64(at), Complete: true}
			r := NewReader(bytes.NewReader(log[at:min(len(log), at+3000)]), o)
			var record Record
			for i := 0; i < 2 && r.Next(&record) == nil; i++ {
				require.NotEqual(t, "6b0219e6.7802", string(record.SessionID), at)
				require.False(t, record.PID == 1)
			}
		}
	}
}

func TestEnormousLineIsNotHeld(t *testing.T) {
	for format, name := range formats {
		lines := bytes.SplitAfterN(sample(t, name), []byte("\n"), 2)
		line := lines[0]
		at := bytes.Index(line, []byte("connection received")) + 5
		require.Greater(t, at, 5)
		const size = 100 << 20
		src := io.MultiReader(bytes.NewReader(line), bytes.NewReader(line[:at]), io.LimitReader(filler{}, size), bytes.NewReader(line[at:]), bytes.NewReader(line))
		var lost []Unreadable
		r := NewReader(src, Options{Format: format, Complete: true, Unreadable: func(u Unreadable) { lost = append(lost, u) }})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var record Record
		require.NoError(t, r.Next(&record))
		require.NoError(t, r.Next(&record))
		require.ErrorIs(t, r.Next(&record), io.EOF)
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(32<<20))
		n := int64(len(line))
		require.Equal(t, []Unreadable{{TooLong, n, 2*n + size}}, lost)
		require.Equal(t, 2*n+size, record.Start)
	}
}

type filler struct{}

func (filler) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = "ab ,\\\\"[i%4]
	}
	return len(b), nil
}

func TestSourceErrors(t *testing.T) {
	log := sample(t, "sample.json")
	broken := errors.New("disk gone")
	r := NewReader(io.MultiReader(bytes.NewReader(log[:100]), iotest.ErrReader(broken)), Options{Complete: true})
	var record Record
	require.ErrorIs(t, r.Next(&record), broken)
	require.Zero(t, r.Offset())
	require.ErrorIs(t, NewReader(silent{}, Options{}).Next(&record), io.ErrNoProgress)
}

type silent struct{}

func (silent) Read([]byte) (int, error) { return 0, nil }

func TestJSONForms(t *testing.T) {
	const rest = `"timestamp":"2026-11-21 22:00:00.000 UTC","session_id":"a.b","line_num":1,"error_severity":"LOG","backend_type":"x"`
	for text, good := range map[string]bool{
		`{` + rest + `}`:     true,
		" { " + rest + " } ": true,
		`{` + rest + `,"later":{"a":[1,-2.5e3,null,true,false,"\u00e9",{}],"b":[]}}`: true,
		`{` + rest + `,"detail":"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83d"}`:        true,
		`{` + rest + `,"detail":"a` + "\x01" + `"}`:                                  false,
		`{` + rest + `,"detail":"\x"}`:                                               false,
		`{` + rest + `,"detail":"\u12"}`:                                             false,
		`{` + rest + `,"detail":null}`:                                               false,
		`{` + rest + `,"pid":"1"}`:                                                   false,
		`{` + rest + `,"pid":01}`:                                                    false,
		`{` + rest + `,"pid":-0}`:                                                    false,
		`{` + rest + `,"pid":9223372036854775807}`:                                   true,
		`{` + rest + `,"pid":9223372036854775808}`:                                   false,
		`{` + rest + `,"query_id":-9223372036854775808}`:                             true,
		`{` + rest + `,"query_id":-9223372036854775809}`:                             false,
		`{` + rest + `,"pid":1.0}`:                                                   false,
		`{` + rest + `,"line_num":2}`:                                                false, // twice
		`{` + rest + `} x`:                                                           false,
		`{` + rest + `}{`:                                                            false,
		`{` + rest + `,}`:                                                            false,
		`{` + rest + `,"later":[1,]}`:                                                false,
		`{` + rest + `,"later":1.}`:                                                  false,
		`{` + rest + `,"later":` + strings.Repeat("[", 10000) + `}`:                  false,
		`[]`: false,
		`{}`: false,
		strings.Replace("{"+rest+"}", "22:00", "25:00", 1):                false,
		strings.Replace("{"+rest+"}", `"session_id":"a.b",`, "", 1):       false,
		strings.Replace("{"+rest+"}", `,"error_severity":"LOG"`, "", 1):   false,
		strings.Replace("{"+rest+"}", `,"backend_type":"x"`, "", 1):       false,
		strings.Replace("{"+rest+"}", `"line_num":1`, `"line_num":0`, 1):  false,
		strings.Replace("{"+rest+"}", `"line_num":1`, `"line_num":-1`, 1): false,
	} {
		records, lost, _ := readAll(t, []byte(text+"\n"), Options{})
		require.Equal(t, good, len(records) == 1 && len(lost) == 0, text)
	}
	records, _, _ := readAll(t, []byte(`{`+rest+`,"detail":"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83d!"}`), Options{})
	require.Equal(t, "a\"\\/\b\f\n\r\té😀\ufffd!", string(records[0].Detail))
}

func TestCSVForms(t *testing.T) {
	const good = `2026-11-21 22:00:00.000 UTC,"u","d",7,"::1:5432",a.b,1,"SELECT",2026-11-21 21:00:00 UTC,3/4,5,LOG,00000,"m ""q""` + "\n" + `2","d","h","i",6,"c","s",8,"f, a.c:9","app","client backend",10,-11`
	records, lost, _ := readAll(t, []byte(good+"\n"), Options{Format: CSV})
	require.Empty(t, lost)
	r := records[0]
	require.Equal(t, "::1", string(r.RemoteHost))
	require.EqualValues(t, 5432, r.RemotePort)
	require.Equal(t, "m \"q\"\n2", string(r.Message))
	require.Equal(t, "f a.c 9", fmt.Sprintf("%s %s %d", r.FuncName, r.FileName, r.FileLineNum))
	require.EqualValues(t, []int64{7, 1, 5, 6, 8, 10, -11}, []int64{r.PID, r.LineNum, r.TXID, r.InternalPosition, r.CursorPosition, r.LeaderPID, r.QueryID})
	for text, want := range map[string]Counts{
		good:         {Cut: 2}, // the number may go on
		good + ",\n": {Broken: 2},
		strings.Replace(good, `"u"`, `u`, 1) + "\n":                               {Broken: 2},
		strings.Replace(good, `,7,`, `,"7",`, 1) + "\n":                           {Broken: 2},
		strings.Replace(good, `,7,`, `,x,`, 1) + "\n":                             {Broken: 2},
		strings.Replace(good, `"h"`, `"h`, 1) + "\n":                              {Broken: 2},
		strings.Replace(good, `"f, a.c:9"`, `"f"`, 1) + "\n":                      {Broken: 2},
		strings.Replace(good, `"client backend"`, ``, 1) + "\n":                   {Broken: 2},
		good[:strings.LastIndexByte(good, ',')] + "\n":                            {Broken: 2},
		strings.Repeat("x", 5000) + "\n":                                          {TooLong: 1},
		strings.Replace(good, "m ", strings.Repeat("m\n", 5000), 1) + "\n":        {TooLong: 1},
		strings.Replace(good, "m ", strings.Repeat("m\n", 5000), 1) + "x\n":       {TooLong: 1},
		strings.Replace(good, "\"m ", strings.Repeat("m", 5000), 1) + "\n" + good: {TooLong: 1, Broken: 1, Cut: 2},
	} {
		records, _, counts := readAll(t, []byte(text), Options{Format: CSV, MaxRecord: 4096})
		require.Empty(t, records, text)
		counts.Bytes = 0
		require.Equal(t, want, counts, "%.300q", text)
	}
}

func TestEqual(t *testing.T) {
	records, _, _ := readAll(t, sample(t, "sample.json"), Options{})
	r := records[20]
	require.True(t, r.Equal(r.Clone()))
	for i := range r.texts() {
		other := r.Clone()
		*other.texts()[i] = []byte("other")
		require.False(t, r.Equal(other), i)
	}
	for _, change := range []func(*Record){
		func(r *Record) { r.Time = r.Time.Add(1) }, func(r *Record) { r.BadEncoding = true }, func(r *Record) { r.PID++ },
		func(r *Record) { r.RemotePort++ }, func(r *Record) { r.LineNum++ }, func(r *Record) { r.TXID++ },
		func(r *Record) { r.InternalPosition++ }, func(r *Record) { r.CursorPosition++ }, func(r *Record) { r.FileLineNum++ },
		func(r *Record) { r.LeaderPID++ }, func(r *Record) { r.QueryID++ },
	} {
		other := r.Clone()
		change(other)
		require.False(t, r.Equal(other))
	}
	other := r.Clone()
	other.Start++
	require.True(t, r.Equal(other))
}

func TestZones(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for text, want := range map[string]string{
		"2026-11-21 22:00:00.123 UTC":    "2026-11-21T22:00:00.123Z",
		"2026-11-21 22:00:00.123 GMT":    "2026-11-21T22:00:00.123Z",
		"2026-11-21 22:00:00.123 CET":    "2026-11-21T21:00:00.123Z",
		"2026-07-21 22:00:00.123 CEST":   "2026-07-21T20:00:00.123Z",
		"2024-02-29 00:00:00.000 +05":    "2024-02-28T19:00:00Z",
		"2024-02-29 00:00:00.000 -0330":  "2024-02-29T03:30:00Z",
		"2024-02-29 00:00:00.000 +05:45": "2024-02-28T18:15:00Z",
		"1969-12-31 23:59:59.999 UTC":    "1969-12-31T23:59:59.999Z",
		"2026-11-21 22:00:00.123 PST":    "0001-01-01T00:00:00Z", // not Berlin's
		"2026-11-21 22:00:00.123 +5":     "0001-01-01T00:00:00Z",
	} {
		line := fmt.Sprintf(`{"timestamp":%q,"session_id":"a.b","line_num":1,"error_severity":"LOG","backend_type":"x"}`, text)
		records, lost, counts := readAll(t, []byte(line), Options{Location: berlin})
		require.Empty(t, lost, text)
		require.Equal(t, want, records[0].Time.Format(time.RFC3339Nano), text)
		require.Equal(t, strings.HasPrefix(want, "0001"), counts.UnknownZone == 1, text)
	}
	// Every day of some centuries, as package time has it.
	for day := time.Date(1890, 1, 1, 12, 0, 0, 5e6, time.UTC); day.Year() < 2410; day = day.AddDate(0, 0, 1) {
		milli, _, ok := civil([]byte(day.Format("2006-01-02 15:04:05.000 MST")))
		require.True(t, ok && milli == day.UnixMilli(), day)
	}
}

// Whatever is taken for a record is JSON, and says what encoding/json reads in it.
func sameAsEncodingJSON(t *testing.T, line []byte, r *Record) {
	if r.BadEncoding {
		return
	}
	var fields map[string]any
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&fields), "%q", line)
	for key, value := range fields {
		text, number := r.field(slices.Index(jsonKeys[:], `"`+key+`":`))
		switch {
		case text == nil && number == nil:
		case text != nil:
			require.Equal(t, value, string(*text), key)
		default:
			require.Equal(t, fmt.Sprint(value), fmt.Sprint(*number), key)
		}
	}
}

func FuzzReader(f *testing.F) {
	for format, name := range formats {
		lines := bytes.SplitAfter(sample(f, name), []byte("\n"))
		for i := range lines {
			if i%10 == 0 {
				f.Add(format == CSV, bytes.Join(lines[i:min(len(lines), i+2)], nil), uint16(100*i))
			}
		}
		f.Add(format == CSV, damaged(f, format)[:5000], uint16(7))
	}
	f.Fuzz(func(t *testing.T, csv bool, log []byte, split uint16) {
		o := Options{}
		if csv {
			o.Format = CSV
		}
		want := all(t, bytes.NewReader(log), o)
		at := min(int(split), len(log))
		require.Equal(t, want, all(t, io.MultiReader(bytes.NewReader(log[:at]), bytes.NewReader(log[at:])), o))
		records, lost, _ := readAll(t, log, o)
		covered := int64(0)
		for _, r := range records {
			covered += r.End - r.Start
			if !csv {
				sameAsEncodingJSON(t, log[r.Start:r.End], r)
			}
			event := NewEncoder(EncoderOptions{KeepMessages: true, KeepParameters: true})
			event.Read(r)
			require.True(t, json.Valid(event.Append(nil, &Context{Actor: "a", Tenant: "t", Purpose: "p"})))
		}
		for _, u := range lost {
			covered += u.End - u.Start
		}
		require.EqualValues(t, len(log), covered)
		if len(records) > 0 {
			// The rest from the end of the first.
			end := records[0].End
			rest, _, _ := readAll(t, log[end:], Options{Format: o.Format, Offset: end})
			require.Len(t, rest, len(records)-1)
		}
	})
}
