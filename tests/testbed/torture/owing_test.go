package main

import "testing"

func TestNothingIsWrittenWhileAClientIsOwedTooMuch(t *testing.T) {
	pair := &Pair{direct: &Recorder{}, hub: &Recorder{}}
	pairs := []*Pair{pair, {direct: &Recorder{}, hub: &Recorder{}}}
	pair.direct.owing.reaches(10, 0)
	pair.hub.owing.reaches(10, 0)
	for version := uint64(11); version <= 14; version++ {
		if !mayWrite(pairs) {
			t.Errorf("at %d %d are owed", version, pair.owed())
		}
		pair.direct.owing.reaches(version, owedToOne/3)
	}
	if mayWrite(pairs) {
		t.Errorf("%d are owed", pair.owed())
	}
	// A bookmark says that it has heard of what came before.
	pair.hub.owing.reaches(11, 0)
	if pair.owed() != owedToOne/3*3 || !mayWrite(pairs) {
		t.Errorf("%d are owed", pair.owed())
	}
	// What the hub tells with an old version does not take it back.
	pair.hub.owing.reaches(14, 5)
	pair.hub.owing.reaches(9, 5)
	if pair.owed() != 0 || pair.hub.told() != 2 {
		t.Errorf("%d are owed", pair.owed())
	}
}
