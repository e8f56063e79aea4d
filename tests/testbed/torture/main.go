// The other side of `make torture`: clients as they are in a cluster, written with client-go. It writes objects, follows
// them directly and through the hub, and says where the two differ.
//
// It is told what to do by lines of JSON on its standard input and answers each with one line on its standard output.
// What is done to hub and link meanwhile is the business of whoever started it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// Settings say where everything is.
type Settings struct {
	API    string `json:"api"`
	Hub    string `json:"hub"`
	Health string `json:"health"`
	// PEM files: the cluster's CA; certificate and key of an admin, and of the node.
	APICA string `json:"apiCA"`
	Admin string `json:"admin"`
	Node  string `json:"node"`

	NodeName string `json:"nodeName"`
	Seed     int64  `json:"seed"`
	// Writes a second.
	Rate float64 `json:"rate"`
	// Objects of the large collection.
	Bulk int `json:"bulk"`
}

// Command is one line of the input.
type Command struct {
	Do string `json:"do"`
	// Whether an honest refusal is an answer (the link is cut).
	Offline bool `json:"offline"`
	// Names one of many, where there are many.
	Number int `json:"number"`
	// How often.
	Times int `json:"times"`
}

func main() {
	// What reflectors complain about is what is done to them.
	klog.LogToStderr(false)
	klog.SetOutput(os.Stderr)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: torture SETTINGS.json")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	var settings Settings
	if err := json.Unmarshal(text, &settings); err != nil {
		return err
	}
	session := &Session{settings: settings}
	lines := bufio.NewScanner(os.Stdin)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var command Command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		answer, err := session.do(command)
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if err := output.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Session is what lives from one command to the next.
type Session struct {
	settings Settings
	cluster  *Cluster
	writer   *Writer
	pairs    []*Pair
	patches  *Patches
	kills    []Kill
	// The hub is cut off and will be killed before it hears of anything that is written now.
	doomed atomic.Bool
}

func (s *Session) do(command Command) (any, error) {
	if s.cluster == nil && command.Do != "setup" {
		return nil, fmt.Errorf("%q before setup", command.Do)
	}
	switch command.Do {
	case "setup":
		cluster, err := setUp(s.settings)
		if err != nil {
			return nil, err
		}
		s.cluster, s.patches = cluster, &Patches{cluster: cluster}
		return map[string]any{}, nil
	case "follow":
		return s.follow()
	case "write":
		if s.writer == nil {
			s.writer = newWriter(s.cluster, s.pace)
		}
		s.writer.start()
		return map[string]any{}, nil
	case "rest":
		if s.writer == nil {
			return nil, fmt.Errorf("nothing is written")
		}
		return s.writer.stop(), nil
	case "compare":
		return compareAll(s.pairs, s.kills), nil
	case "doom":
		s.doomed.Store(true)
		return map[string]any{}, nil
	case "kill":
		s.kills = append(s.kills, Kill{From: time.Now()})
		return map[string]any{}, nil
	case "killed":
		if last := len(s.kills) - 1; last >= 0 {
			s.kills[last].To = time.Now()
		}
		s.doomed.Store(false)
		return map[string]any{}, nil
	case "unfollow":
		for _, pair := range s.pairs {
			pair.stop()
		}
		s.pairs, s.kills = nil, nil
		return map[string]any{}, nil
	case "list":
		return s.cluster.firstList()
	case "check":
		return s.cluster.check(command.Offline)
	case "bulk":
		return s.cluster.askForBulk(command.Number)
	case "patch":
		return s.patches.send(command.Times)
	case "patched":
		return s.patches.kept()
	case "replayed":
		return s.patches.arrived()
	default:
		return nil, fmt.Errorf("%q is no command", command.Do)
	}
}

// pace is what may be written. What a hub never hears of that is killed, clients may be told as it is when they come back.
func (s *Session) pace() Pace {
	if s.doomed.Load() {
		return anything
	}
	return pace(s.pairs)
}

func (s *Session) follow() (any, error) {
	if s.pairs != nil {
		return nil, fmt.Errorf("they are followed already")
	}
	for _, spec := range specs(s.settings.NodeName) {
		pair, err := followBoth(s.cluster, spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", spec.Name, err)
		}
		s.pairs = append(s.pairs, pair)
	}
	return map[string]any{"pairs": len(s.pairs)}, nil
}
