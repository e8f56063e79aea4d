//! Answers through a store that is real.

use futures::FutureExt;

use super::*;
use crate::clock::today;

#[tokio::test(start_paused = true)]
async fn the_first_answer_to_a_pod_of_the_node_is_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_, memory) = memory(dir.path(), Bounds { answer: 100, total: 1000, count: 10 });
    let (agent, other) = (Owner::Other("agent"), Owner::Other("other"));
    memory.stay([agent].into_iter());
    let keep = |owner: Owner<'_>, text: &str| {
        memory.remember(&Key::new(owner, "/pods", "/own/pod", "", ""), &json(text), Keep::Stored);
    };
    keep(other, "1");
    assert!(memory.due().now_or_never().is_none());
    keep(agent, "1");
    assert!(memory.due().now_or_never().is_some());
    memory.write_back().await.unwrap();
    keep(agent, "2");
    assert!(memory.due().now_or_never().is_none(), "a change waits for company");
}

fn json(text: &str) -> Answer {
    Answer::new(http::StatusCode::OK, "application/json", bytes::Bytes::copy_from_slice(text.as_bytes()))
}

fn of_node(path: &str) -> Key {
    Key::new(Owner::Node("system:node:edge"), "", path, "", "")
}

fn memory(dir: &std::path::Path, bounds: Bounds) -> (Store, Remembered) {
    let (store, _) = Store::open(dir).unwrap();
    (store.clone(), Remembered::open(store, Bucket::Answers, bounds))
}

#[tokio::test]
async fn an_answer_is_written_once_and_found_by_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { answer: 100, total: 1000, count: 2 };
    let (store, memory) = memory(dir.path(), bounds);
    let keep = |memory: &Remembered, path: &str, text: &str| {
        memory.remember(&of_node(path), &json(text), Keep::Stored);
    };
    keep(&memory, "/a", "1");
    assert_eq!(memory.recall(&of_node("/a")).unwrap(), Some(json("1")), "not written yet");
    memory.write_back().await.unwrap();
    let commits = store.stats().commits;
    keep(&memory, "/a", "1");
    memory.write_back().await.unwrap();
    assert_eq!(store.stats().commits, commits, "unchanged");
    let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
    assert_eq!(memory.recall(&of_node("/a")).unwrap(), Some(json("1")));
    keep(&memory, "/a", "1");
    memory.write_back().await.unwrap();
    assert_eq!(store.stats().commits, commits, "still unchanged");
    for path in ["/b", "/c"] {
        keep(&memory, path, "2");
    }
    assert_eq!(memory.recall(&of_node("/a")).unwrap(), None, "the oldest went");
    memory.write_back().await.unwrap();
    memory.forget(&of_node("/c")).await.unwrap();
    let memory = Remembered::open(store, Bucket::Answers, bounds);
    let left: Vec<_> = ["/a", "/b", "/c"].iter().map(|path| memory.recall(&of_node(path)).unwrap()).collect();
    assert_eq!(left, [None, Some(json("2")), None]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_changing_answers_is_written_once_a_minute_and_leases_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { answer: 100_000, total: 1_000_000, count: 100 };
    let (store, memory) = memory(dir.path(), bounds);
    let hour = async |metrics: bool| {
        let before = store.stats().syncs;
        for second in (0..3600).step_by(2) {
            memory.remember(&of_node("/lease"), &json(&format!("{second}{metrics}")), Keep::InMemory);
            if metrics && second % 15 == 0 {
                memory.remember(&of_node("/metrics"), &json(&second.to_string()), Keep::Stored);
            }
            tokio::time::advance(Duration::from_secs(2)).await;
            if memory.due().now_or_never().is_some() {
                memory.write_back().await.unwrap();
            }
        }
        store.stats().syncs - before
    };
    assert_eq!(hour(false).await, 0, "a standby of a leader election");
    let syncs = hour(true).await;
    assert!((30..=130).contains(&syncs), "{syncs}");
    assert_eq!(memory.recall(&of_node("/lease")).unwrap(), Some(json("3598true")));
    let another = Remembered::open(store.clone(), Bucket::Answers, bounds);
    assert_eq!(another.recall(&of_node("/lease")).unwrap(), None);
}

#[tokio::test]
async fn behind_a_disk_that_hangs_the_oldest_answers_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { answer: 512 << 10, total: 8 << 20, count: 1024 };
    let (store, memory) = memory(dir.path(), bounds);
    let (release, hangs) = std::sync::mpsc::channel::<()>();
    let mut hangs = Some(hangs);
    let hanging = store.write(Durability::Soon, move |_| {
        let _ = hangs.take().map(|hangs| hangs.recv());
        Ok(())
    });
    let asking = async {
        let text = "x".repeat(200 << 10);
        let (_, writing) = tokio::join!(
            async {
                for number in 0..200 {
                    memory.remember(&of_node(&number.to_string()), &json(&text), Keep::Stored);
                    assert!(memory.lock().unwritten <= UNWRITTEN);
                    tokio::task::yield_now().await;
                }
                release.send(()).unwrap();
            },
            memory.write_back()
        );
        writing.unwrap();
    };
    let (hung, ()) = tokio::join!(hanging, asking);
    hung.unwrap();
    memory.write_back().await.unwrap();
    assert_eq!(memory.recall(&of_node("0")).unwrap(), None);
    assert!(memory.recall(&of_node("199")).unwrap().is_some());
    let index = memory.lock();
    assert_eq!((index.unwritten, index.removed.len()), (0, 0));
}

#[tokio::test]
async fn what_could_not_be_written_is_written_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { answer: 3 << 20, total: 30 << 20, count: 100 };
    let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
    let memory = Remembered::open(store, Bucket::Answers, bounds);
    memory.remember(&of_node("/small"), &json("1"), Keep::Stored);
    memory.write_back().await.unwrap();
    memory.remember(&of_node("/small"), &json("2"), Keep::Stored);
    memory.remember(&of_node("/large"), &json(&"x".repeat(1100 << 10)), Keep::Stored);
    assert!(matches!(memory.write_back().await, Err(StoreError::Full(_))));
    assert_eq!(memory.recall(&of_node("/small")).unwrap(), Some(json("2")));
    memory.forget(&of_node("/large")).await.unwrap();
    memory.write_back().await.unwrap();
    assert_eq!(memory.lock().unwritten, 0);
    assert_eq!(memory.recall(&of_node("/small")).unwrap(), Some(json("2")));
}

#[tokio::test]
async fn answers_about_one_resource_are_forgotten_together() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let bounds = Bounds { answer: 100, total: 1000, count: 40 };
    let key =
        |owner: &'static str, subject: &str, path: &str| Key::new(Owner::Other(owner), subject, path, "", "");
    let answer = Answer::new(http::StatusCode::OK, "application/json", bytes::Bytes::from_static(b"{}"));
    let (one, two) = (key("a", "/secrets", "/1"), key("a", "/secrets", "/2"));
    let others = [key("a", "/configmaps", "/3"), key("b", "/secrets", "/1")];
    let memory = Remembered::open(store.clone(), Bucket::Answers, bounds);
    memory.remember(&one, &answer, Keep::Stored);
    memory.write_back().await.unwrap();
    memory.remember(&two, &answer, Keep::Stored);
    others.iter().for_each(|key| memory.remember(key, &answer, Keep::Stored));
    memory.forget_subject(&key("a", "/secrets", "/never asked for")).await.unwrap();
    memory.write_back().await.unwrap();
    for memory in [memory, Remembered::open(store, Bucket::Answers, bounds)] {
        assert_eq!([&one, &two].map(|key| memory.recall(key).unwrap()), [None, None]);
        assert!(others.iter().all(|key| memory.recall(key).unwrap().is_some()));
    }
}

#[tokio::test]
async fn what_an_older_release_has_remembered_is_told_until_there_is_something_newer() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let bounds = Bounds { answer: 100, total: 1000, count: 40 };
    let of = |owner: &'static str, path: &str| Key::new(Owner::Other(owner), "/secrets", path, "", "");
    let keys = [of("a", "/1"), of("a", "/2"), of("b", "/3"), of("b", "/4")];
    for key in &keys {
        store.put_durable(Bucket::Answers, &key.older(), &json("old").to_bytes()).await.unwrap();
    }
    let open = || Remembered::open(store.clone(), Bucket::Answers, bounds);
    let recalled = |memory: &Remembered| {
        keys.each_ref().map(|key| {
            let answer = memory.recall(key).unwrap();
            answer.map(|answer| (String::from_utf8(answer.body.to_vec()).unwrap(), answer.confirmed))
        })
    };
    let old = Some(("old".to_owned(), Some(today())));
    let memory = open();
    assert_eq!(recalled(&memory), [(); 4].map(|()| old.clone()));
    memory.write_back().await.unwrap();
    // It was found first on that day, and not with every start.
    let day = store.get(Bucket::Misc, &older_since(Bucket::Answers)).unwrap().unwrap();
    assert_eq!(day, today().to_be_bytes());
    store.put_durable(Bucket::Misc, &older_since(Bucket::Answers), &7_u64.to_be_bytes()).await.unwrap();
    assert_eq!(recalled(&open())[0], Some(("old".to_owned(), Some(7))));

    memory.remember(&keys[0], &json("new"), Keep::Stored);
    memory.forget(&keys[1]).await.unwrap();
    // A right that was lost, to whatever that is about.
    memory.forget_subject(&of("b", "/5")).await.unwrap();
    memory.write_back().await.unwrap();
    for memory in [memory, open()] {
        assert_eq!(recalled(&memory), [Some(("new".to_owned(), None)), None, None, None]);
    }
    assert_eq!(store.sizes(Bucket::Answers).unwrap().len(), 1);
}

#[tokio::test]
async fn an_answer_that_the_disk_has_bent_is_none_and_is_kept_when_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, memory) = memory(dir.path(), Bounds { answer: 100, total: 1000, count: 10 });
    let keep = || memory.remember(&of_node("/a"), &json("1"), Keep::Stored);
    keep();
    memory.write_back().await.unwrap();
    let key = bucket_key(Bucket::Answers, &of_node("/a").bytes);
    let bend = move |tx: &mut crate::store::Tx<'_>| tx.put(Table::Buckets, &key, b"bent");
    store.write(Durability::Durable, bend).await.unwrap();
    assert_eq!(memory.recall(&of_node("/a")).unwrap(), None);
    keep();
    assert_eq!(memory.recall(&of_node("/a")).unwrap(), Some(json("1")));
    memory.write_back().await.unwrap();
    assert_eq!(memory.recall(&of_node("/a")).unwrap(), Some(json("1")));
    let another = Remembered::open(store, Bucket::Answers, Bounds { answer: 100, total: 1000, count: 10 });
    assert_eq!(another.recall(&of_node("/a")).unwrap(), Some(json("1")));
}
