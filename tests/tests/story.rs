//! The whole story on a real cluster, and what must hold besides. Takes about a quarter of an hour.
//!
//! One test: every step needs those before it. What is measured is printed as it goes.

use yurt_tests::cluster::{Cluster, Options};
use yurt_tests::deps;
use yurt_tests::story::{self, Story, product::Product};

#[test]
fn the_story_is_true_on_a_real_cluster() {
    if let Some(reason) = deps::impossible() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must play the story, but {reason}");
        eprintln!("skipped: {reason}");
        return;
    }
    let product = Product::find().unwrap();
    let cluster = Cluster::start(&Options::default()).unwrap();
    let mut story = Story::begin(cluster, product).unwrap();
    if let Err(error) = story.play(&story::everything()) {
        panic!("{error:#}");
    }
}
