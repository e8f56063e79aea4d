use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use super::*;

/// 2026-06-01.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_780_272_000)
}

fn open(dir: &Path) -> Certificates {
    Certificates::open(dir, Path::new("/nowhere"), "edge", None, now()).unwrap()
}

fn service() -> BTreeSet<IpAddr> {
    ["10.96.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into()
}

#[test]
fn the_first_start_makes_both_and_the_next_one_has_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let first = open(&state_dir);
    assert!(first.installed().is_present());
    let state = first.state().borrow().clone();
    assert_eq!((state.error, state.expires.as_deref()), (None, Some("2036-05-29T00:00:00Z")));
    for file in [CA_FILE, SERVING_FILE] {
        let mode = std::fs::metadata(state_dir.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let next = open(&state_dir);
    assert_eq!((next.ca(), &next.serving.pem), (first.ca(), &first.serving.pem));
    // The clock is no reason for another one: a board boots in 1970.
    let early = Certificates::open(&state_dir, Path::new("/nowhere"), "edge", None, UNIX_EPOCH).unwrap();
    assert_eq!(early.serving.pem, first.serving.pem);
}

#[test]
fn a_damaged_ca_is_set_aside_and_everything_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let path = dir.path().join(CA_FILE);
    let whole = std::fs::read(&path).unwrap();
    let damages: [Vec<u8>; 4] =
        [Vec::new(), whole[..whole.len() / 2].to_vec(), vec![0; whole.len()], vec![0xff; 10]];
    let mut last = first.ca();
    for damage in damages {
        std::fs::write(&path, &damage).unwrap();
        let next = open(dir.path());
        assert_ne!(next.ca(), last);
        assert_eq!(std::fs::read(dir.path().join("ca.pem.damaged")).unwrap(), damage);
        // Its certificate is of the new one, and both stay.
        let again = open(dir.path());
        assert_eq!((again.ca(), &again.serving.pem), (next.ca(), &next.serving.pem));
        last = next.ca();
    }
}

#[test]
fn a_ca_that_cannot_be_read_is_kept_and_no_other_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let (path, elsewhere) = (dir.path().join(CA_FILE), dir.path().join("elsewhere"));
    std::fs::rename(&path, &elsewhere).unwrap();
    // Reading the first page of the own memory is EIO, as of a disk that fails; a symlink to itself is ELOOP.
    for target in [Path::new("/proc/self/mem"), &path] {
        std::os::unix::fs::symlink(target, &path).unwrap();
        let refused =
            Certificates::open(dir.path(), Path::new("/nowhere"), "edge", None, now()).err().unwrap();
        let text = refused.to_string();
        assert!(text.contains("ca.pem") && text.contains("look at the disk"), "{text}");
        assert_eq!(std::fs::read_link(&path).unwrap(), target, "it is where it was");
        assert!(!dir.path().join("ca.pem.damaged").exists());
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::rename(&elsewhere, &path).unwrap();
    let next = open(dir.path());
    assert_eq!((next.ca(), &next.serving.pem), (first.ca(), &first.serving.pem));
    // What is no file at all has no CA in it.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_ne!(open(dir.path()).ca(), first.ca());
}

#[test]
fn a_damaged_certificate_costs_itself_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    std::fs::write(dir.path().join(SERVING_FILE), &first.serving.pem[..100]).unwrap();
    let next = open(dir.path());
    assert_eq!(next.ca(), first.ca());
    assert_ne!(next.serving.pem, first.serving.pem);
}

#[test]
fn the_services_addresses_outlive_the_process_and_another_domain() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = open(dir.path());
    assert_eq!(first.service_addresses(), BTreeSet::new());
    let wanted = first.names.with(&service());
    first.renew(&wanted, now());
    keep(&first.files()).unwrap();
    let pem = first.serving.pem.clone();
    first.renew(&wanted, now());
    assert_eq!(first.serving.pem, pem, "nothing has changed");
    assert_eq!(open(dir.path()).service_addresses(), service());
    let other =
        Certificates::open(dir.path(), Path::new("/nowhere"), "edge", Some("shop.example"), now()).unwrap();
    assert_eq!(other.service_addresses(), service());
    assert_ne!(other.serving.pem, pem);
}

#[test]
fn a_disk_that_takes_nothing_is_told_of_and_costs_no_handshake() {
    let dir = tempfile::tempdir().unwrap();
    // A file where the folder should be: root may write everywhere else.
    let state_dir = dir.path().join("state");
    std::fs::write(&state_dir, "").unwrap();
    let opened = open(&state_dir);
    assert!(opened.installed().is_present());
    let error = opened.state().borrow().error.clone().unwrap();
    assert!(error.contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn a_running_hub_follows_the_service_and_puts_its_files_back() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path());
    let (ca, text) = (opened.ca(), opened.ca_text.clone());
    let (addresses, receiver) = watch::channel(BTreeSet::new());
    let stop = CancellationToken::new();
    let path = dir.path().join(SERVING_FILE);
    let before = std::fs::read(&path).unwrap();
    let running = tokio::spawn(opened.run(receiver, stop.clone()));
    addresses.send_replace(service());
    yurt_fakes::until("the certificate of the Service's addresses", async || {
        (std::fs::read(&path).ok()? != before).then_some(())
    })
    .await;
    assert_eq!(open(dir.path()).service_addresses(), service());
    std::fs::remove_file(dir.path().join(CA_FILE)).unwrap();
    std::fs::write(&path, "damaged").unwrap();
    // Also without this, after half a minute.
    addresses.send_replace(service());
    yurt_fakes::until("both files", async || {
        let back = std::fs::read_to_string(dir.path().join(CA_FILE)).is_ok_and(|found| found == text);
        (back && std::fs::read(&path).ok()? != b"damaged").then_some(())
    })
    .await;
    assert_eq!(open(dir.path()).ca(), ca);
    stop.cancel();
    running.await.unwrap();
}
