//! Requests as kubelet writes them, replies as they are replayed.

use serde_json::json;

use super::*;
use crate::wire::TypeMeta;
use crate::wire::proto::Writer;

fn protobuf_request(uid: &str) -> Bytes {
    let mut bound = Writer::default();
    for (field, text) in [(1, "Pod"), (2, "v1"), (3, "web-0"), (4, uid)] {
        bound.bytes(field, text.as_bytes());
    }
    let mut spec = Writer::default();
    spec.bytes(1, b"vault");
    spec.bytes(3, &bound.finish());
    spec.varint(4, 3607);
    let mut request = Writer::default();
    request.bytes(1, b"");
    request.bytes(2, &spec.finish());
    proto::envelope(&TypeMeta::new("authentication.k8s.io/v1", "TokenRequest"), &request.finish())
}

fn json_request(uid: &str) -> Bytes {
    let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "spec": {"audiences": ["vault"], "expirationSeconds": 3607,
                 "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web-0", "uid": uid}},
        "status": {"token": "", "expirationTimestamp": null}});
    Bytes::from(request.to_string())
}

#[test]
fn protobuf_and_json_ask_for_the_same() {
    let protobuf = Request::parse("shop", "web", true, &protobuf_request("u-1")).unwrap();
    let json = Request::parse("shop", "web", false, &json_request("u-1")).unwrap();
    assert_eq!(protobuf, json);
    assert_eq!(protobuf.key(), json.key());
    assert_eq!(protobuf.user(), "system:serviceaccount:shop:web");
    assert!(!protobuf.is_for_api_server());
}

#[test]
fn another_pod_is_another_key() {
    let one = Request::parse("shop", "web", true, &protobuf_request("u-1")).unwrap();
    let two = Request::parse("shop", "web", true, &protobuf_request("u-2")).unwrap();
    assert_ne!(one.key(), two.key());
}

#[test]
fn the_token_is_read_from_both_encodings() {
    let reply = Bytes::from(json!({"status": {"token": "t-1"}}).to_string());
    assert_eq!(token_in(false, &reply).unwrap().expose(), "t-1");
    let mut status = Writer::default();
    status.bytes(1, b"t-2");
    let mut document = Writer::default();
    document.bytes(3, &status.finish());
    let reply =
        proto::envelope(&TypeMeta::new("authentication.k8s.io/v1", "TokenRequest"), &document.finish());
    assert_eq!(token_in(true, &reply).unwrap().expose(), "t-2");
}

fn reply(exp: i64) -> Answer {
    let token = jwt::for_test(&json!({"exp": exp, "sub": "system:serviceaccount:shop:web"}));
    let body = json!({"kind": "TokenRequest", "status": {"token": token, "expirationTimestamp": "2020-01-01T00:00:00Z"}});
    Answer::new(http::StatusCode::OK, "application/json", Bytes::from(body.to_string()))
}

#[tokio::test]
async fn a_reply_is_replayed_for_the_same_pod_until_the_tokens_own_end() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let replies = Replies::open(store.clone()).await;
    let request = |uid: &str| Request::parse("shop", "web", true, &protobuf_request(uid)).unwrap();
    let now = i64::try_from(unix_seconds(SystemTime::now())).unwrap();
    replies.store_reply(&request("u-1"), &reply(now + 1000)).await.unwrap();
    // One that expires while it lies there.
    let (two, stale) = (request("u-2"), reply(now - 1));
    let head = Head { request: two.clone(), expires: now - 1 };
    let value = [serde_json::to_vec(&head).unwrap(), b"\n".to_vec(), stale.to_bytes()].concat();
    store.put(Bucket::Tokens, &two.key(), &value).await.unwrap();
    assert_eq!(replies.recall(&request("u-1")).unwrap(), Some(reply(now + 1000)));
    assert_eq!(replies.recall(&request("u-2")).unwrap(), None, "expired");
    assert_eq!(replies.recall(&request("u-3")).unwrap(), None, "another pod");
    assert_eq!(store.scan(Bucket::Tokens, b"", None, 10).unwrap().len(), 2);
    let replies = Replies::open(store.clone()).await;
    assert_eq!(store.scan(Bucket::Tokens, b"", None, 10).unwrap().len(), 1);
    assert_eq!(replies.recall(&request("u-1")).unwrap(), Some(reply(now + 1000)));
    assert!(replies.tokens().unwrap().is_empty(), "its audience is not the API server");
}

#[tokio::test]
async fn each_pod_of_an_account_has_its_token_and_those_that_last_longest_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let replies = Replies::open(store).await;
    let now = i64::try_from(unix_seconds(SystemTime::now())).unwrap();
    let more = i64::try_from(OF_ONE).unwrap() + 3;
    for number in 1..=more {
        let (name, uid) = (format!("web-{number}"), format!("u-{number}"));
        let request = Request::of_pod("shop", "web", "", Some(3607), (&name, &uid));
        replies.store_reply(&request, &reply(now + 100 * number)).await.unwrap();
    }
    let tokens = replies.tokens().unwrap();
    let mut ends: Vec<_> =
        tokens.iter().map(|(_, token)| jwt::claims(token.expose()).unwrap().exp.unwrap() - now).collect();
    ends.sort_unstable();
    assert_eq!(ends, (4..=more).map(|number| 100 * number).collect::<Vec<_>>());
    assert!(tokens.iter().all(|(request, _)| request.user() == "system:serviceaccount:shop:web"));
}

#[tokio::test]
async fn replies_are_bounded_and_those_of_pods_that_are_gone_go() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let replies = Replies::open(store.clone()).await;
    let request = |uid: &str| Request::parse("shop", "web", true, &protobuf_request(uid)).unwrap();
    let now = i64::try_from(unix_seconds(SystemTime::now())).unwrap();
    for (uid, expires) in [("u-1", now + 1000), ("u-2", now + 2000), ("u-3", now - 1)] {
        replies.store_reply(&request(uid), &reply(expires)).await.unwrap();
    }
    let stored = || store.scan(Bucket::Tokens, b"", None, 10).unwrap().len();
    replies.store_reply(&request("u-2"), &reply(now + 2000)).await.unwrap();
    assert_eq!(stored(), 2, "what has expired is gone with the next one that is kept");
    let pods = HashSet::from(["u-2".to_owned()]);
    replies.purge(&pods, Instant::now()).await.unwrap();
    assert_eq!(stored(), 2, "kubelet may know the pod before we do");
    replies.purge(&pods, Instant::now() + GRACE).await.unwrap();
    assert_eq!(stored(), 1);
    assert!(replies.recall(&request("u-1")).unwrap().is_none());
    assert!(replies.recall(&request("u-2")).unwrap().is_some());
}

#[tokio::test]
async fn a_store_full_of_old_replies_is_tidied_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let now = i64::try_from(unix_seconds(SystemTime::now())).unwrap();
    let request = Request::parse("shop", "web", true, &protobuf_request("u")).unwrap();
    let values: Vec<_> = (0..MAX_REPLIES as i64 * 2 + 100)
        .map(|number| {
            // The good ones come last.
            let expires = if number < MAX_REPLIES as i64 * 2 { now - 1 } else { now + number };
            let head = Head { request: request.clone(), expires };
            let value = [serde_json::to_vec(&head).unwrap(), b"\n".to_vec(), reply(expires).to_bytes()];
            let key = [&[Bucket::Tokens as u8][..], &number.to_be_bytes()].concat();
            let value = store.sealer().seal(&key, &value.concat()).unwrap();
            (key, value)
        })
        .collect();
    store
        .write(crate::store::Durability::Soon, move |tx| {
            values.iter().try_for_each(|(key, value)| tx.put(crate::store::Table::Buckets, key, value))
        })
        .await
        .unwrap();
    Replies::open(store.clone()).await;
    assert_eq!(store.scan(Bucket::Tokens, b"", None, 10_000).unwrap().len(), 100);
}

#[test]
fn what_expires_first_goes_first_and_the_newest_stays() {
    let now = SystemTime::now();
    let at = |seconds: i64| i64::try_from(unix_seconds(now)).unwrap() + seconds;
    let kept = |expires| Kept { expires, pod: None, since: Instant::now() };
    let mut index: HashMap<_, _> =
        (1..=5).map(|number| (vec![number], kept(at(i64::from(number) * 100)))).collect();
    let mut gone = excess(&mut index, Some(&[1]), 3, now);
    gone.sort();
    assert_eq!(gone, [vec![2], vec![3]]);
    assert_eq!(index.len(), 3);
}

#[test]
fn rubbish_is_an_error() {
    assert!(Request::parse("a", "b", true, &Bytes::from_static(b"{}")).is_err());
    assert!(Request::parse("a", "b", false, &Bytes::from_static(b"k8s\0")).is_err());
}
