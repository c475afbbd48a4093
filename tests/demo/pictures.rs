//! The four dashboards with the data of a namespace, as one page that is drawn again and again. Runs Debian's Prometheus. Does I/O.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use codex_cluster::{Cluster, Target};
use codex_metrics::dashboards;
use codex_tests::{
    Error, Result,
    install::{cache, client_of},
    picture,
    prometheus::{Prometheus, Window, now},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use crate::tour::MARK;

/// The most points of a series. A panel is about 250 pixels wide.
const POINTS: u32 = 120;
/// The time between two drawings. The page in the browser reloads as often.
const AGAIN: Duration = Duration::from_secs(15);
const STYLE: &str = "body { margin: 0 auto; max-width: 1000px } svg { width: 100%; height: auto; margin: 1em 0 }";

/// A Prometheus that scrapes the controller and the pods of a namespace, and the page with what it has seen.
pub(crate) struct Pictures {
    prometheus: Prometheus,
    namespace: String,
    begun: f64,
    page: PathBuf,
}

impl Pictures {
    /// Starts Prometheus for the demo, where it can reach the pods. Says why, if it cannot.
    pub(crate) async fn begin(cluster: &Cluster, client: &Client, namespace: &str) -> Result<Option<Self>> {
        let why = if *cluster.target() != Target::Local {
            "pods of another cluster may be out of reach of this machine"
        } else if !Prometheus::is_installed()? {
            "prometheus is not installed (Debian's package prometheus)"
        } else {
            return Self::start(client, namespace, cache().join("demo/dashboards.html")).await.map(Some);
        };
        println!("No dashboards: {why}.");
        Ok(None)
    }

    /// Starts Prometheus, and says where the page will be.
    async fn start(client: &Client, namespace: &str, page: PathBuf) -> Result<Self> {
        let prometheus = Prometheus::start(client.clone(), namespace).await?;
        println!("A Prometheus scrapes the controller and the pods of {namespace}: {}", prometheus.url());
        let pictures = Self { prometheus, namespace: namespace.to_owned(), begun: now(), page };
        pictures.draw(Some(AGAIN)).await?;
        println!(
            "The four dashboards, drawn again every {} s; open them in a browser: file://{}",
            AGAIN.as_secs(),
            pictures.page.display()
        );
        Ok(pictures)
    }

    /// Draws the page again and again, and never ends. A page that cannot be drawn is tried again, because nothing else depends on it.
    pub(crate) async fn follow(&self) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(AGAIN).await;
            let failure = self.draw(Some(AGAIN)).await.err().map(|error| error.to_string()).unwrap_or_default();
            if !failure.is_empty() && failure != told {
                eprintln!("The dashboards cannot be drawn now: {failure}");
            }
            told = failure;
        }
    }

    /// Draws the page for the last time, and returns its path.
    pub(crate) async fn finish(&self) -> Result<&Path> {
        self.draw(None).await?;
        Ok(&self.page)
    }

    /// Draws the page. In a browser it reloads itself after the time `again`.
    async fn draw(&self, again: Option<Duration>) -> Result<()> {
        let window = Window::new(self.begun, now(), POINTS);
        let mut pictures = Vec::new();
        for board in dashboards::all() {
            let mut data = Vec::new();
            for panel in board.panels() {
                data.push(self.prometheus.panel(panel, window, &self.namespace).await?);
            }
            pictures.push(picture::draw(&board, window, &data));
        }
        let text = page(&self.namespace, again, &pictures);
        let io = || Error::io(format!("writing {}", self.page.display()));
        fs::create_dir_all(self.page.with_file_name("")).map_err(io())?;
        // Renamed, so that a browser never reads half of a page.
        let new = self.page.with_extension("new");
        fs::write(&new, text).map_err(io())?;
        fs::rename(new, &self.page).map_err(io())
    }
}

/// Returns the page with these pictures.
fn page(namespace: &str, again: Option<Duration>, pictures: &[String]) -> String {
    let mut text = "<!doctype html>\n<meta charset=\"utf-8\">\n".to_owned();
    if let Some(again) = again {
        let _ = writeln!(text, "<meta http-equiv=\"refresh\" content=\"{}\">", again.as_secs());
    }
    let _ = writeln!(text, "<title>Codex: the dashboards of {namespace}</title>\n<style>{STYLE}</style>");
    text.push_str(&pictures.join("\n"));
    text
}

/// Draws the dashboards of a namespace of the running local cluster until it is interrupted. Without a name, the namespace is that of the
/// latest demo.
///
/// # Errors
/// If there is no such cluster or namespace, or Prometheus cannot be started.
pub(crate) async fn run(namespace: Option<String>) -> Result<()> {
    let client = client_of(&Cluster::find()?).await?;
    let namespace = match namespace {
        Some(named) => {
            Api::<Namespace>::all(client.clone()).get(&named).await?;
            named
        }
        None => latest_demo(&client).await?,
    };
    let pictures = Pictures::start(&client, &namespace, cache().join("dashboards.html")).await?;
    println!("Ctrl-C ends it.");
    tokio::select! {
        () = pictures.follow() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Error::io("waiting for Ctrl-C")),
    }?;
    println!("\nThe last page stays: {}", pictures.finish().await?.display());
    Ok(())
}

/// Returns the namespace of the latest demo.
async fn latest_demo(client: &Client) -> Result<String> {
    let found = Api::<Namespace>::all(client.clone()).list(&ListParams::default().labels(MARK)).await?;
    let latest = found.items.into_iter().max_by_key(|namespace| namespace.creation_timestamp().map(|time| time.0));
    latest.map(|namespace| namespace.name_any()).ok_or_else(|| Error::Impossible {
        what: "the dashboards of the latest demo are drawn".to_owned(),
        why: "this cluster has no namespace of a demo".to_owned(),
        state: "run make demo first, or name another namespace: make dashboards NAMESPACE=team".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reloads_itself_until_it_is_the_last() {
        let pictures = dashboards::all().into_iter().map(|board| {
            let data: Vec<_> = board.panels().map(|_| Vec::new()).collect();
            picture::draw(&board, Window::new(100.0, 100.0, POINTS), &data)
        });
        let pictures: Vec<String> = pictures.collect();
        let [drawn_again, last] = [Some(AGAIN), None].map(|again| page("team", again, &pictures));
        for text in [&drawn_again, &last] {
            assert!(text.contains("<title>Codex: the dashboards of team</title>"), "{text}");
            assert_eq!(text.matches("<svg").count(), pictures.len());
            assert!(!text.contains("NaN"), "a window without length is drawn, too");
        }
        assert!(drawn_again.contains("<meta http-equiv=\"refresh\" content=\"15\">"));
        assert!(!last.contains("http-equiv"));
    }
}
