//! Latest values: one in large print, or several as bars.

use codex_metrics::dashboard::{Panel, Shape};

use super::{
    Line,
    svg::{self, Anchor, Rectangle, Svg},
    value,
};
use crate::prometheus::Window;

/// The colours of a number that should be 0: if it is, and if it is not.
const ZERO: [&str; 2] = ["#1a7f37", "#cf222e"];
/// The most letters in the largest print.
const LARGE: usize = 8;
/// The greatest height of a bar, and the least.
const BAR: (f64, f64) = (22.0, 13.0);

/// Draws the latest value of a panel. Returns false if there is none.
pub(super) fn number(svg: &mut Svg, panel: &Panel, place: Rectangle, lines: &[Line]) -> bool {
    let Some((_, latest)) = lines.first().and_then(|line| line.points.last()) else { return false };
    let colour = match panel.shape {
        Shape::Zero => ZERO[usize::from(*latest >= 1.0)],
        _ => svg::colour(0),
    };
    let (x, y) = (place.x + place.width / 2.0, place.y + place.height / 2.0 + 6.0);
    let text = value::shown(panel.unit, *latest);
    let class = if text.chars().count() > LARGE { "m" } else { "n" };
    svg.coloured(x, y, Anchor::Middle, class, colour, &text);
    true
}

/// Draws the values at the end of the window as bars. Returns false if there are none.
pub(super) fn bars(svg: &mut Svg, panel: &Panel, place: Rectangle, window: Window, lines: &[Line]) -> bool {
    let at_the_end =
        |line: &Line| line.points.last().filter(|(at, _)| window.end - at < window.step / 2.0).map(|it| it.1);
    let found: Vec<_> = lines.iter().filter_map(|line| Some((line, at_the_end(line)?))).collect();
    if found.is_empty() {
        return false;
    }
    let most = ((place.height - 6.0) / BAR.1) as usize;
    // The last line says how many are left out.
    let shown = if found.len() > most { most - 1 } else { found.len() };
    let height = ((place.height - 6.0) / shown.max(1) as f64).clamp(BAR.1, BAR.0);
    let longest = found[..shown].iter().map(|(line, _)| line.legend.chars().count()).max().unwrap_or(0);
    let label = (longest as f64 * svg::SMALL + 8.0).min(place.width * 0.6);
    let (left, right) = (place.x + 8.0 + label, place.x + place.width - 44.0);
    let greatest = found.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    for (number, (line, latest)) in found[..shown].iter().enumerate() {
        let y = place.y + number as f64 * height;
        let middle = y + height / 2.0 + 3.5;
        svg.text(place.x + 8.0, middle, Anchor::Start, "l", &svg::shortened(&line.legend, label, svg::SMALL));
        let width = (latest / greatest).clamp(0.0, 1.0) * (right - left);
        svg.filled(Rectangle { x: left, y: y + 2.0, width: width.max(1.0), height: height - 4.0 }, svg::colour(number));
        svg.text(left + width.max(1.0) + 5.0, middle, Anchor::Start, "l", &value::shown(panel.unit, *latest));
    }
    if shown < found.len() {
        let y = place.y + shown as f64 * height + height / 2.0 + 3.5;
        svg.text(place.x + 8.0, y, Anchor::Start, "l", &format!("and {} more", found.len() - shown));
    }
    true
}
