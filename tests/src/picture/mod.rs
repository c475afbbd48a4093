//! Draws a dashboard with the results of its queries as an SVG: the same rows, panels, titles, units and legends as in Grafana,
//! drawn by this module. Pure, and the same data give the same bytes.

mod axis;
mod chart;
mod gauge;
mod svg;
mod value;

use codex_metrics::dashboard::{Area, COLUMNS, Dashboard, Item, Panel, Shape};

use crate::prometheus::Window;
use svg::{Anchor, Rectangle, Svg};

/// The pixels of a column and of a line of the grid.
const CELL: (f64, f64) = (40.0, 22.0);
/// The free space around the dashboard and between panels.
const MARGIN: f64 = 8.0;
const GAP: f64 = 6.0;
/// The height of the title.
const HEADER: f64 = 58.0;
/// The height of a line of the title of a panel.
const TITLE: f64 = 14.0;
/// A series of a panel.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub legend: String,
    /// Its values, each with its Unix time, in the order of time.
    pub points: Vec<(f64, f64)>,
}

/// Returns the picture of a dashboard. `panels` are the series of its panels, in the order of [`Dashboard::panels`].
pub fn draw(dashboard: &Dashboard, window: Window, panels: &[Vec<Line>]) -> String {
    let layout = dashboard.layout();
    let lines = layout.iter().map(|(area, _)| area.y + area.height).max().unwrap_or(0);
    let width = f64::from(COLUMNS) * CELL.0 + 2.0 * MARGIN;
    let mut svg = Svg::new(width, HEADER + f64::from(lines) * CELL.1 + MARGIN, dashboard.title);
    svg.text(MARGIN + 4.0, 25.0, Anchor::Start, "h", dashboard.title);
    svg.text(MARGIN + 4.0, 45.0, Anchor::Start, "s", dashboard.sentence);
    let span = value::span(window.end - window.start);
    let note = format!("Data of a real Prometheus over {span}, drawn by this project's own renderer, not by Grafana");
    svg.text(width - MARGIN - 4.0, 25.0, Anchor::End, "s", &note);
    let mut series = panels.iter();
    for (area, item) in layout {
        let place = pixels(area);
        match item {
            Item::Row(title) => svg.text(place.x + 2.0, place.y + 15.0, Anchor::Start, "r", title),
            Item::Panel(panel) => draw_panel(&mut svg, panel, place, window, series.next().map_or(&[], Vec::as_slice)),
        }
    }
    svg.finish()
}

fn pixels(area: Area) -> Rectangle {
    Rectangle {
        x: MARGIN + f64::from(area.x) * CELL.0 + GAP / 2.0,
        y: HEADER + f64::from(area.y) * CELL.1 + GAP / 2.0,
        width: f64::from(area.width) * CELL.0 - GAP,
        height: f64::from(area.height) * CELL.1 - GAP,
    }
}

fn draw_panel(svg: &mut Svg, panel: &Panel, place: Rectangle, window: Window, lines: &[Line]) {
    svg.open_group(panel.sentence);
    svg.rectangle(place, "p");
    let mut title = 4.0;
    for text in svg::wrapped(panel.title, place.width - 12.0, svg::BOLD) {
        svg.text(place.x + 8.0, place.y + title + 12.0, Anchor::Start, "t", &text);
        title += TITLE;
    }
    title += 6.0;
    let below = Rectangle { y: place.y + title, height: place.height - title, ..place };
    let known: Vec<Line> = lines.iter().map(known).filter(|line| !line.points.is_empty()).collect();
    let drawn = match panel.shape {
        Shape::Lines | Shape::Stack => chart::draw(svg, panel, below, window, &known),
        Shape::Number | Shape::Zero => gauge::number(svg, panel, below, &known),
        Shape::Bars => gauge::bars(svg, panel, below, window, &known),
    };
    if !drawn {
        let middle = (below.x + below.width / 2.0, below.y + below.height / 2.0);
        svg.text(middle.0, middle.1, Anchor::Middle, "e", panel.empty);
    }
    svg.close_group();
}

/// Returns a series without NaN and infinity, which have no place on an axis.
fn known(line: &Line) -> Line {
    let points = line.points.iter().copied().filter(|(_, value)| value.is_finite()).collect();
    Line { legend: line.legend.clone(), points }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use codex_metrics::{
        controller::{OBJECTS, UNVERIFIED},
        dashboard::{PanelUnit, TAG},
        label::{KIND, PHASE},
    };

    use super::*;

    /// Returns a dashboard with every shape, with data and without.
    fn example() -> (Dashboard, Vec<Vec<Line>>) {
        let objects = OBJECTS.value(&[]);
        let panel = |shape, unit, title| Panel::new(shape, unit, title, "What it shows & what is <normal>.");
        let rows = vec![
            (
                "Now",
                vec![
                    panel(Shape::Number, PanelUnit::Requests, "Requests").named(&objects, "requests"),
                    panel(Shape::Zero, PanelUnit::Number, "Unverified").named(&UNVERIFIED.value(&[]), "objects"),
                    panel(Shape::Zero, PanelUnit::Number, "Damaged").named(&objects, "objects"),
                    panel(Shape::Number, PanelUnit::Seconds, "A title that is too long for its panel")
                        .when_empty("no keys"),
                ],
            ),
            (
                "Over time",
                vec![
                    panel(Shape::Lines, PanelUnit::Number, "Margin").by(&objects, &[KIND]),
                    panel(Shape::Stack, PanelUnit::PerSecond, "Writes").by(&objects, &[KIND, PHASE]),
                    panel(Shape::Bars, PanelUnit::Number, "Objects").by(&objects, &[KIND, PHASE]),
                    panel(Shape::Lines, PanelUnit::Share, "Failed share").when_empty("no traffic"),
                ],
            ),
        ];
        let line = |legend: &str, value: fn(f64) -> f64| Line {
            legend: legend.to_owned(),
            points: (0..=30).map(|step| f64::from(step) * 2.0).map(|at| (1000.0 + at, value(at))).collect(),
        };
        let many = (0..12).map(|number| Line { legend: format!("Kind{number} apply"), ..line("", |at| at / 100.0) });
        let mut late = line("late", |at| 1.0 + (at / 9.0).sin());
        late.points.retain(|(at, _)| !(1010.0..1030.0).contains(at));
        late.points[0].1 = f64::NAN;
        let data = vec![
            vec![line("requests", |at| at * 20.3)],
            vec![line("objects", |_| 0.0)],
            vec![line("objects", |_| 2.0)],
            vec![],
            vec![line("exact_match", |at| at / 60.0 - 0.3), late],
            many.collect(),
            vec![line("TrainingRun Running", |_| 3.0), line("Evaluation Passed", |_| 12.0), {
                let mut gone = line("TrainingRun Pending", |_| 7.0);
                gone.points.truncate(9);
                gone
            }],
            vec![line("nothing", |_| f64::NAN)],
        ];
        let board = Dashboard { uid: TAG, title: "Codex / Example", sentence: "Every shape.", namespaces: None, rows };
        (board, data)
    }

    const WINDOW: Window = Window { start: 1000.0, end: 1060.0, step: 2.0 };

    #[test]
    fn a_picture_is_the_recorded_one() {
        let (board, data) = example();
        let picture = draw(&board, WINDOW, &data);
        assert_eq!(picture, draw(&board, WINDOW, &data));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/picture/example.svg");
        if env::var_os("UPDATE").is_some() {
            fs::write(&path, &picture).unwrap();
        }
        let recorded = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            recorded == picture,
            "{} differs; regenerate it with\n    UPDATE=1 cargo test --release --locked --workspace --lib picture\n",
            path.display()
        );
    }

    #[test]
    fn a_picture_shows_titles_values_and_what_is_missing() {
        let (board, data) = example();
        let picture = draw(&board, WINDOW, &data);
        for text in [
            "Codex / Example",
            "Failed share",
            "no traffic",
            "no keys",
            "1.22K req/s",
            "What it shows &amp; what is &lt;normal&gt;.",
        ] {
            assert!(picture.contains(text), "{text}: {picture}");
        }
        // A bar exists only if its series exists at the end, and a long legend says what it leaves out.
        assert!(picture.contains("Evaluation Passed") && !picture.contains("TrainingRun Pending"));
        assert!(picture.contains("more</text>"), "{picture}");
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert_eq!(picture.matches("<g>").count(), picture.matches("</g>").count());
    }

    #[test]
    fn every_dashboard_has_a_picture_without_data() {
        for board in codex_metrics::dashboards::all() {
            let picture = draw(&board, WINDOW, &[]);
            for panel in board.panels() {
                let start = svg::escaped(panel.title.split(' ').next().unwrap());
                assert!(picture.contains(&start), "{}: {}", board.title, panel.title);
            }
        }
    }
}
