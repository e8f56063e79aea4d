package main

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

func change(kind watch.EventType, key string, version uint64) Event {
	return Event{Type: kind, Item: Item{Key: key, Version: version}}
}

// judge compares what came through the hub with a history that begins with nothing at 1.
func judge(t *testing.T, history []Event, through ...*Stretch) *Figures {
	t.Helper()
	direct := &Recorder{stretches: []*Stretch{{Whole: true, Version: 1, Events: history}}}
	hub := &Recorder{stretches: append([]*Stretch{{Whole: true, Version: 1, Known: 1}}, through...)}
	return (&Pair{direct: direct, hub: hub}).compare(nil)
}

func TestWhatAClientIsOwedWhenItIsCutOffIsTorn(t *testing.T) {
	history := []Event{change(watch.Added, "a", 2), change(watch.Added, "b", 3), change(watch.Modified, "a", 4)}
	// Folded: b, and then a as it is at 4. It was cut between them, and goes on from b.
	figures := judge(t, history,
		&Stretch{Since: 1, Known: 4, Events: history[1:2]},
		&Stretch{Since: 3, Known: 4, Events: history[2:]})
	if figures.Torn != 1 || figures.Mistyped != 0 || figures.Lost != 0 {
		t.Errorf("%+v", figures)
	}
}

func TestAnEventThatWasLostIsNotTorn(t *testing.T) {
	history := []Event{change(watch.Added, "a", 2), change(watch.Added, "b", 3), change(watch.Modified, "a", 4)}
	// Nothing was owed of a when the client came back: what it had been at 2 was to come before b.
	figures := judge(t, history,
		&Stretch{Since: 1, Known: 3, Events: history[1:2]},
		&Stretch{Since: 3, Known: 3, Events: history[2:]})
	if figures.Torn != 0 || figures.Mistyped != 1 {
		t.Errorf("%+v", figures)
	}
}

func TestWhatIsOwedIsLostWhenTheClientIsBeyondIt(t *testing.T) {
	history := []Event{
		change(watch.Added, "a", 2), change(watch.Added, "b", 3), change(watch.Modified, "a", 4),
		change(watch.Modified, "b", 5), change(watch.Modified, "a", 6),
	}
	figures := judge(t, history,
		&Stretch{Since: 1, Known: 4, Events: history[1:2]},
		&Stretch{Since: 3, Known: 5, Events: history[3:4]},
		&Stretch{Since: 5, Known: 5, Events: history[4:]})
	if figures.Torn != 0 || figures.Mistyped != 1 {
		t.Errorf("%+v", figures)
	}
}

func TestWhatHasBecomeOfTheStateMeanwhileIsAPartOfIt(t *testing.T) {
	stretch := &Stretch{}
	for _, item := range []Item{{Key: "a", Version: 1}, {Key: "b", Version: 2}} {
		if !stretch.begins(watch.Added, item) {
			t.Errorf("%v", item)
		}
	}
	if !stretch.begins(watch.Modified, Item{Key: "a", Version: 3}) || !stretch.begins(watch.Deleted, Item{Key: "b", Version: 4}) {
		t.Error("what was there is changed")
	}
	if stretch.begins(watch.Deleted, Item{Key: "b", Version: 4}) || stretch.begins(watch.Modified, Item{Key: "c", Version: 5}) {
		t.Error("what was not there is not changed")
	}
	if len(stretch.State) != 1 || stretch.State[0].Version != 3 {
		t.Errorf("%+v", stretch.State)
	}
}

func TestAListAfterAWatchIsExplainedByAKillThatMayHaveEndedIt(t *testing.T) {
	began := time.Now()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	watched := &Stretch{Since: 1, Known: 1, Began: at(10), Ended: at(11)}
	for _, of := range []struct {
		kill      Kill
		explained bool
	}{
		{Kill{at(8), at(12)}, true}, {Kill{at(11), at(12)}, false}, {Kill{at(8), at(10)}, false}, {Kill{at(8), at(10).Add(1)}, true},
	} {
		direct := &Recorder{stretches: []*Stretch{{Whole: true, Version: 1}}}
		hub := &Recorder{stretches: []*Stretch{{Whole: true, Version: 1}, watched, {Whole: true, Version: 1}}}
		figures := (&Pair{direct: direct, hub: hub}).compare([]Kill{of.kill})
		if figures.Relists != 1 || (figures.Unexplained == 0) != of.explained {
			t.Errorf("%v: %+v", of.kill, figures)
		}
	}
}
