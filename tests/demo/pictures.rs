//! The four dashboards with the data of the demo, as one page. Runs Debian's Prometheus beside the demo. Does I/O.

use std::{fmt::Write as _, fs, path::PathBuf};

use codex_cluster::Target;
use codex_metrics::dashboards;
use codex_tests::{
    Error, Installation, Result,
    install::cache,
    picture,
    prometheus::{Prometheus, Window, now},
};
use kube::Client;

/// The most points of a series. A panel is about 250 pixels wide.
const POINTS: u32 = 120;

/// A Prometheus that scrapes the controller and the pods of the demo.
pub(crate) struct Pictures {
    prometheus: Prometheus,
    namespace: String,
    begun: f64,
}

impl Pictures {
    /// Starts Prometheus, where it can reach the pods. Says why, if it cannot.
    pub(crate) async fn begin(installation: &Installation, client: &Client, namespace: &str) -> Result<Option<Self>> {
        if *installation.cluster.target() != Target::Local {
            println!("No dashboards at the end: pods of another cluster may be out of reach of this machine.");
            return Ok(None);
        }
        if !Prometheus::is_installed()? {
            println!("No dashboards at the end: prometheus is not installed (Debian's package prometheus).");
            return Ok(None);
        }
        let prometheus = Prometheus::start(client.clone(), namespace).await?;
        println!("A Prometheus scrapes everything meanwhile, until the demo ends: {}", prometheus.url());
        Ok(Some(Self { prometheus, namespace: namespace.to_owned(), begun: now() }))
    }

    /// Writes the page and returns its path.
    pub(crate) async fn write(&self) -> Result<PathBuf> {
        let window = Window::new(self.begun, now(), POINTS);
        let mut page = "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Codex: the dashboards of the demo</title>\n\
                        <style>body { margin: 0 auto; max-width: 1000px } svg { width: 100%; height: auto; margin: 1em 0 }</style>\n"
            .to_owned();
        for board in dashboards::all() {
            let mut data = Vec::new();
            for panel in board.panels() {
                data.push(self.prometheus.panel(panel, window, &self.namespace).await?);
            }
            let _ = writeln!(page, "{}", picture::draw(&board, window, &data));
        }
        let path = cache().join("demo/dashboards.html");
        let io = || Error::io(format!("writing {}", path.display()));
        fs::create_dir_all(path.with_file_name("")).map_err(io())?;
        fs::write(&path, page).map_err(io())?;
        Ok(path)
    }
}
