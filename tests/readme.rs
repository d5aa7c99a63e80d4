//! The README says what the program says: the tour.

use std::path::Path;

use portico::cli::demo::tour;

const README: &str = include_str!("../README.md");

#[test]
fn the_readme_shows_the_tour_as_the_program_prints_it() {
    let tour = tour::text("https://127.0.0.1:6443", Path::new("/tmp/portico-demo"), true);
    assert!(README.contains(&format!("```text\n{tour}```")), "the tour is now:\n{tour}");
}
