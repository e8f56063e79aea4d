package main

import (
	"fmt"
	"sort"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

// When nothing is written any more and the two sides are not at the same state, and nobody has heard anything for so
// long, nobody will.
const quiet = 90 * time.Second

// Samples of each kind of difference that are told.
const samples = 6

// Figures say what came of one pair.
type Figures struct {
	Name string `json:"name"`
	// Events heard directly, and through the hub.
	Direct int `json:"direct"`
	Hub    int `json:"hub"`
	// The client's state was not what it had to be: at a list, at a bookmark, in the end.
	Lost int `json:"lost"`
	// The same event twice.
	Doubled int `json:"doubled"`
	// An event or a bookmark behind a newer one.
	Disordered int `json:"disordered"`
	// Events that the API server has not sent, or not so: another object, another type.
	Wrong int `json:"wrong"`
	// Events after some that were passed over, with a type that does not fit what the client holds: ADDED and MODIFIED
	// exchanged, DELETED of what it never had. client-go goes by what it holds.
	Mistyped int `json:"mistyped"`
	// Intermediate events that a watcher did not get although it had been there.
	Skipped int `json:"skipped"`
	// The same of events from before the watcher came (back).
	Folded int `json:"folded"`
	// Mistyped events of objects of which the client was owed a newer one when it was cut in the middle of catching up:
	// that it goes on from its last event tells nobody that it is one of a folded history.
	Torn int `json:"torn"`
	// Watches through the hub, whole lists after the first one, and those of them that nothing explains.
	Watches     int `json:"watches"`
	Relists     int `json:"relists"`
	Unexplained int `json:"unexplained"`
	// Examples of all that should not be.
	Examples []string `json:"examples,omitempty"`

	told map[string]int
}

func (f *Figures) tell(count *int, kind, format string, values ...any) {
	*count++
	if f.told == nil {
		f.told = map[string]int{}
	}
	if f.told[kind]++; f.told[kind] <= samples {
		f.Examples = append(f.Examples, kind+": "+fmt.Sprintf(format, values...))
	}
}

// compareAll waits until the clients agree, as long as any of them hears of something, and then looks at how they came to
// it.
func compareAll(pairs []*Pair, kills []Kill) any {
	began := time.Now()
	settled, silent, heard := began, began, 0
	for _, pair := range pairs {
		for !pair.agree() && time.Since(silent) < quiet {
			time.Sleep(50 * time.Millisecond)
			settled = time.Now()
			if now := heardBy(pairs); now != heard {
				silent, heard = settled, now
			}
		}
	}
	all := make([]*Figures, 0, len(pairs))
	for _, pair := range pairs {
		all = append(all, pair.compare(kills))
	}
	return map[string]any{"pairs": all, "settledMs": settled.Sub(began).Milliseconds()}
}

// heardBy counts what clients have been told of objects.
func heardBy(pairs []*Pair) int {
	heard := 0
	for _, pair := range pairs {
		heard += pair.direct.told() + pair.hub.told()
	}
	return heard
}

func (p *Pair) agree() bool {
	direct, err := p.direct.state()
	if err != nil {
		return false
	}
	hub, err := p.hub.state()
	return err == nil && len(differences(direct, hub)) == 0
}

// differences names the objects that are not the same.
func differences(want, have map[string]Item) []string {
	var found []string
	for key, item := range want {
		if other, there := have[key]; !there {
			found = append(found, fmt.Sprintf("%s at %d is missing", key, item.Version))
		} else if other != item {
			found = append(found, fmt.Sprintf("%s is %d (%s, %x) and not %d (%s, %x)",
				key, other.Version, other.UID, other.Hash, item.Version, item.UID, item.Hash))
		}
	}
	for key, item := range have {
		if _, there := want[key]; !there {
			found = append(found, fmt.Sprintf("%s at %d is one too many", key, item.Version))
		}
	}
	sort.Strings(found)
	return found
}

// History is what the API server has said: a state, and every event since.
type History struct {
	base    map[string]Item
	version uint64
	events  []Event
}

// history is that of the client that asks the API server itself.
func (r *Recorder) history() (*History, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var h *History
	for _, stretch := range r.stretches {
		if stretch.Whole {
			if h != nil {
				return nil, fmt.Errorf("the API server made its own client list again")
			}
			h = &History{base: byKey(stretch.State), version: stretch.Version}
		}
		for _, event := range stretch.Events {
			if event.Type == watch.Bookmark {
				continue
			}
			if last := len(h.events); last > 0 && h.events[last-1].Version >= event.Version {
				return nil, fmt.Errorf("the API server's own events are not in order at %d", event.Version)
			}
			h.events = append(h.events, event)
		}
	}
	if h == nil {
		return nil, fmt.Errorf("the API server's own client never had a list")
	}
	return h, nil
}

func byKey(items []Item) map[string]Item {
	all := make(map[string]Item, len(items))
	for _, item := range items {
		all[item.Key] = item
	}
	return all
}

// after is the index of the first event behind a version.
func (h *History) after(version uint64) int {
	return sort.Search(len(h.events), func(at int) bool { return h.events[at].Version > version })
}

// at is the state at a version.
func (h *History) at(version uint64) map[string]Item {
	state := make(map[string]Item, len(h.base))
	for key, item := range h.base {
		state[key] = item
	}
	for _, event := range h.events[:h.after(version)] {
		apply(state, event)
	}
	return state
}

func apply(state map[string]Item, event Event) {
	if event.Type == watch.Deleted {
		delete(state, event.Key)
	} else {
		state[event.Key] = event.Item
	}
}

// follower walks along what came through the hub.
type follower struct {
	*Figures
	history *History
	// What the client holds, and up to which version it has been told.
	state    map[string]Item
	position uint64
	// Index of the next event of the history.
	next int
	// Keys with events that were passed over, to the newest of them.
	passed map[string]Event
	// Those of them of which the client was owed one when it was cut off and came back.
	torn map[string]bool
	seen map[uint64]bool
	// Index of the event in its stretch, and the stretch before.
	heard  int
	before *Stretch
	// When the hub was killed.
	kills []Kill
}

// compare judges what came through the hub by what the API server said.
func (p *Pair) compare(kills []Kill) *Figures {
	figures := &Figures{Name: p.spec.Name}
	history, err := p.direct.history()
	if err != nil {
		figures.tell(&figures.Lost, "lost", "%v", err)
		return figures
	}
	figures.Direct = len(history.events)
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	f := &follower{Figures: figures, history: history, passed: map[string]Event{}, torn: map[string]bool{}, seen: map[uint64]bool{}, kills: kills, before: &Stretch{}}
	for _, fault := range append(p.hub.faults, p.direct.faults...) {
		f.tell(&f.Wrong, "not understood", "%s", fault)
	}
	explained := true
	for _, stretch := range p.hub.stretches {
		f.stretch(stretch, &explained)
	}
	if f.state == nil {
		f.tell(&f.Lost, "lost", "there never was a whole list through the hub")
		return figures
	}
	for _, difference := range differences(history.at(^uint64(0)), f.state) {
		f.tell(&f.Lost, "lost, in the end", "%s", difference)
	}
	return figures
}

func (f *follower) stretch(stretch *Stretch, explained *bool) {
	switch {
	case stretch.Whole:
		if f.state != nil {
			f.Relists++
			if !*explained {
				f.tell(&f.Unexplained, "unexplained list", "at %d, the client was at %d, %s, after a watch since %d that lasted %v and brought %d events",
					stretch.Version, f.position, stretch.Began.Format("15:04:05.000"), f.before.Since, f.before.Ended.Sub(f.before.Began), len(f.before.Events))
			}
		}
		f.whole(stretch)
		*explained = false
	case f.state == nil, stretch.Since == 0:
		// A list that failed.
	default:
		f.Watches++
		f.position, f.next = stretch.Since, f.history.after(stretch.Since)
		f.tear(stretch)
	}
	// Whatever error a client is given by an API server it answers so; only 410 is a reason of the history.
	if stretch.Gone || stretch.veryShort() && f.killed(stretch) {
		*explained = true
	} else if stretch.Error != "" && !*explained {
		f.told0("error", stretch)
	}
	f.before = stretch
	for at, event := range stretch.Events {
		f.heard = at
		f.event(event, stretch)
	}
}

// tear finds what the client was owed when it was cut off. Changes come in the order of their versions: an object that
// has none between the client's last one and what there was when it came back was not folded, it was lost.
func (f *follower) tear(stretch *Stretch) {
	f.torn = map[string]bool{}
	for _, event := range f.history.events[f.next:] {
		if event.Version > stretch.Known {
			break
		}
		if _, passed := f.passed[event.Key]; passed {
			f.torn[event.Key] = true
		}
	}
}

// Kill is a time in which the hub was killed.
type Kill struct {
	From, To time.Time
}

// killed says whether the hub may have been while this watch was there.
func (f *follower) killed(stretch *Stretch) bool {
	for _, kill := range f.kills {
		if kill.To.After(stretch.Began) && kill.From.Before(stretch.Ended) {
			return true
		}
	}
	return false
}

// told0 keeps what the client was refused with, for whoever has to explain a list.
func (f *follower) told0(kind string, stretch *Stretch) {
	if f.told == nil {
		f.told = map[string]int{}
	}
	if f.told[kind]++; f.told[kind] <= samples {
		f.Examples = append(f.Examples, fmt.Sprintf("(%s %s, watch since %d: %s)", stretch.Began.Format("15:04:05.000"), kind, stretch.Since, stretch.Error))
	}
}

// whole is a list, or the initial events of a WatchList.
func (f *follower) whole(stretch *Stretch) {
	have := byKey(stretch.State)
	if len(have) != len(stretch.State) {
		f.tell(&f.Doubled, "doubled", "a list at %d has an object twice", stretch.Version)
	}
	if stretch.Version < f.history.version {
		// From before the history began: it cannot be judged, and the next state can.
		f.state, f.position, f.next = have, stretch.Version, 0
		return
	}
	for _, difference := range differences(f.history.at(stretch.Version), have) {
		f.tell(&f.Lost, "wrong list", "at %d: %s", stretch.Version, difference)
	}
	f.state, f.position, f.next = have, stretch.Version, f.history.after(stretch.Version)
	f.passed, f.torn = map[string]Event{}, map[string]bool{}
}

func (f *follower) event(event Event, stretch *Stretch) {
	if event.Type == watch.Bookmark {
		f.bookmark(event, stretch)
		return
	}
	f.Hub++
	if event.Version <= f.position {
		if f.seen[event.Version] || event.Version <= stretch.Since || event.Version <= stretch.Version {
			f.tell(&f.Doubled, "doubled", "%s %s at %d, the client was at %d (watch since %d, list at %d)",
				event.Type, event.Key, event.Version, f.position, stretch.Since, stretch.Version)
		} else {
			f.tell(&f.Disordered, "out of order", "%s %s at %d, the client was at %d", event.Type, event.Key, event.Version, f.position)
		}
		return
	}
	at := f.history.after(event.Version - 1)
	if at == len(f.history.events) || f.history.events[at].Version != event.Version {
		f.tell(&f.Wrong, "wrong", "%s %s at %d, which the API server has not sent", event.Type, event.Key, event.Version)
		apply(f.state, event)
		return
	}
	f.pass(at, stretch)
	told := f.history.events[at]
	_, held := f.state[event.Key]
	_, skipped := f.passed[event.Key]
	switch {
	case told.Item != event.Item:
		f.tell(&f.Wrong, "wrong", "%s %s at %d has another content (%x and not %x)", event.Type, event.Key, event.Version, event.Hash, told.Hash)
	case told.Type != event.Type && !skipped:
		f.tell(&f.Wrong, "wrong", "%s %s at %d, which was %s", event.Type, event.Key, event.Version, told.Type)
	case skipped && f.torn[event.Key] && (event.Type == watch.Added) == held:
		f.Torn++
	case skipped && (event.Type == watch.Added) == held:
		last := f.passed[event.Key]
		f.tell(&f.Mistyped, "mistyped", "%s %s at %d, and whether the client had it: %v; it was not told %s at %d (%s)",
			event.Type, event.Key, event.Version, held, last.Type, last.Version, f.place(stretch))
	}
	delete(f.passed, event.Key)
	delete(f.torn, event.Key)
	apply(f.state, event)
	f.position, f.next = event.Version, at+1
	f.seen[event.Version] = true
}

// place says where in which watch the client is.
func (f *follower) place(stretch *Stretch) string {
	began := stretch.Began.Format("15:04:05.000")
	if stretch.Whole {
		return fmt.Sprintf("event %d behind a list at %d, asked for %s", f.heard, stretch.Version, began)
	}
	return fmt.Sprintf("event %d of a watch since %d, asked for %s", f.heard, stretch.Since, began)
}

// pass goes on to an event, over those that the client was not told.
func (f *follower) pass(to int, stretch *Stretch) {
	for ; f.next < to; f.next++ {
		event := f.history.events[f.next]
		f.passed[event.Key] = event
		if event.Version > stretch.Known {
			f.tell(&f.Skipped, "skipped", "%s %s at %d, the watch began when %d was there (%s)",
				event.Type, event.Key, event.Version, stretch.Known, f.place(stretch))
		} else {
			f.Folded++
		}
	}
}

// bookmark promises that nothing up to its version is missing.
func (f *follower) bookmark(event Event, stretch *Stretch) {
	if event.Version < f.position {
		f.tell(&f.Disordered, "out of order", "a bookmark at %d, the client was at %d", event.Version, f.position)
		return
	}
	f.pass(f.history.after(event.Version), stretch)
	for key, last := range f.passed {
		held, there := f.state[key]
		if (last.Type == watch.Deleted) == there || there && held != last.Item {
			f.tell(&f.Lost, "lost, at a bookmark", "%s %s at %d, and the bookmark is at %d", last.Type, key, last.Version, event.Version)
			apply(f.state, last)
		}
	}
	f.passed, f.torn = map[string]Event{}, map[string]bool{}
	f.position = event.Version
}
