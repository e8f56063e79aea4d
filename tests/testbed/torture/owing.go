package main

import (
	"sort"
	"sync"
)

// What a client that watches through the hub may be owed before what is written gets small, and before nothing is written
// any more; and what all of them may be. The hub keeps 512 KiB of events of one collection and 3 MiB of all for clients
// that do not read as fast as they come, and waits for them two seconds. So whoever is starved for longer, on a machine
// that has much to do, has missed nothing all the same.
const (
	muchToOne, mostToOne = 192 << 10, 400 << 10
	muchToAll, mostToAll = 1280 << 10, 2560 << 10
)

// Pace is how much may be written.
type Pace int

const (
	anything Pace = iota
	small
	nothing
)

// owing is what one client has heard: how far it is, and the bytes up to each version.
type owing struct {
	mu       sync.Mutex
	position uint64
	versions []uint64
	bytes    []int
	events   int
	// Watches that it has: the next one may begin before the end of the last one is noticed.
	watching int
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

// watches says that a watch has begun which may be told what came up to a version as it is now, or has ended.
func (r *Recorder) watches(begun bool, known uint64) {
	r.owing.mu.Lock()
	if begun {
		r.owing.watching++
	} else {
		r.owing.watching--
	}
	r.owing.mu.Unlock()
	r.reached(known, 0)
}

// owed is how many bytes the API server has told and the hub has not, each event of them.
func (p *Pair) owed() int {
	p.hub.owing.mu.Lock()
	watching, position := p.hub.owing.watching, p.hub.owing.position
	p.hub.owing.mu.Unlock()
	if watching == 0 {
		return 0
	}
	return p.direct.owing.behind(position)
}

// pace is what may be written, so that nobody is owed too much.
func pace(pairs []*Pair) Pace {
	all, most := 0, 0
	for _, pair := range pairs {
		owed := pair.owed()
		all, most = all+owed, max(most, owed)
	}
	switch {
	case most > mostToOne || all > mostToAll:
		return nothing
	case most > muchToOne || all > muchToAll:
		return small
	default:
		return anything
	}
}
