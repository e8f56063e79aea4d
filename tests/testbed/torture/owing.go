package main

import (
	"sort"
	"sync"
)

// What a client of the hub may be owed before nothing more is written, and what all of them may be. The hub keeps 512 KiB
// of events of one collection and 3 MiB of all for clients that do not read as fast as they come, and waits for them two
// seconds. So whoever is starved for longer, on a machine that has much to do, has missed nothing all the same.
const (
	owedToOne = 256 << 10
	owedToAll = 2 << 20
)

// owing is what one client has heard: how far it is, and the bytes up to each version.
type owing struct {
	mu       sync.Mutex
	position uint64
	versions []uint64
	bytes    []int
	events   int
}

func (o *owing) reaches(version uint64, size int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.position = max(o.position, version)
	if size > 0 {
		o.events++
	}
	if last := len(o.versions) - 1; last < 0 || version > o.versions[last] {
		if last >= 0 {
			size += o.bytes[last]
		}
		o.versions, o.bytes = append(o.versions, version), append(o.bytes, size)
	}
}

// behind is how many bytes came behind a version.
func (o *owing) behind(version uint64) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := len(o.versions) - 1
	at := sort.Search(len(o.versions), func(at int) bool { return o.versions[at] > version }) - 1
	switch {
	case last < 0:
		return 0
	case at < 0:
		return o.bytes[last]
	default:
		return o.bytes[last] - o.bytes[at]
	}
}

func (r *Recorder) reached(version uint64, size int) {
	r.owing.reaches(version, size)
	r.cluster.heard()
}

// told is how many events of objects it has heard.
func (r *Recorder) told() int {
	r.owing.mu.Lock()
	defer r.owing.mu.Unlock()
	return r.owing.events
}

func (r *Recorder) position() uint64 {
	r.owing.mu.Lock()
	defer r.owing.mu.Unlock()
	return r.owing.position
}

// owed is how many bytes the API server has told and the hub has not.
func (p *Pair) owed() int { return p.direct.owing.behind(p.hub.position()) }

// mayWrite says whether nobody is owed too much.
func mayWrite(pairs []*Pair) bool {
	all := 0
	for _, pair := range pairs {
		owed := pair.owed()
		if all += owed; owed > owedToOne || all > owedToAll {
			return false
		}
	}
	return true
}
