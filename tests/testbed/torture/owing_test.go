package main

import "testing"

func TestNothingIsWrittenWhileAClientIsOwedTooMuch(t *testing.T) {
	pair := &Pair{direct: &Recorder{cluster: &Cluster{}}, hub: &Recorder{cluster: &Cluster{}}}
	other := &Pair{direct: &Recorder{cluster: &Cluster{}}, hub: &Recorder{cluster: &Cluster{}}}
	is := func(when string, expected Pace) {
		t.Helper()
		if found := pace([]*Pair{other, pair}); found != expected {
			t.Errorf("%s: %v, and %d are owed", when, found, pair.owed())
		}
	}
	pair.direct.owing.reaches(10, 0)
	pair.hub.owing.reaches(10, 0)
	pair.direct.owing.reaches(11, mostToOne)
	is("nobody watches", anything)
	// What was there when it came may be told as it is then.
	pair.hub.watches(true, 11)
	is("it has just come", anything)
	pair.direct.owing.reaches(12, muchToOne)
	is("just enough", anything)
	pair.direct.owing.reaches(13, 1)
	is("much", small)
	pair.direct.owing.reaches(14, mostToOne-muchToOne)
	is("too much", nothing)
	// A bookmark says that it has heard of what came before; what the hub tells with an old version takes nothing back.
	pair.hub.owing.reaches(13, 0)
	is("it has heard of most", small)
	pair.hub.owing.reaches(14, 5)
	pair.hub.owing.reaches(9, 5)
	is("it has heard of all", anything)
	if pair.owed() != 0 || pair.hub.told() != 2 {
		t.Errorf("%d are owed, and %d were told", pair.owed(), pair.hub.told())
	}
}
