//! Writes SVG: texts, rectangles and paths with coordinates of one decimal.

use std::fmt::Write as _;

/// The style of all pictures. Class names are short, because every text has one.
const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#24292f}\
    .h{font-size:19px;font-weight:600}.s{font-size:12px;fill:#57606a}.r{font-size:14px;font-weight:600}\
    .t{font-size:12px;font-weight:600}.e{font-size:13px;fill:#8c959f}.a{font-size:10px;fill:#57606a}.l{font-size:10px}\
    .p{fill:#fff;stroke:#d0d7de}.g{stroke:#eaeef2;fill:none}.n{font-size:24px;font-weight:600}.m{font-size:18px;font-weight:600}";
/// The background around panels.
const BACKGROUND: &str = "#f6f8fa";
/// The colours of series, which people with colour blindness can tell apart.
const COLOURS: [&str; 10] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#6a3d9a", "#7f7f7f", "#9aa200"];

/// The mean width of a letter of the style `l`, in pixels.
pub(super) const SMALL: f64 = 5.6;
/// The mean width of a letter of the style `t`, in pixels.
pub(super) const BOLD: f64 = 7.6;

/// Returns the colour of a series by its number.
pub(super) fn colour(series: usize) -> &'static str {
    COLOURS[series % COLOURS.len()]
}

/// Returns a text that fits into `width` pixels; an ellipsis stands for what was left out. The width of text is estimated.
pub(super) fn shortened(text: &str, width: f64, letter: f64) -> String {
    let fit = (width / letter).max(1.0) as usize;
    if text.chars().count() <= fit {
        return text.to_owned();
    }
    let kept: String = text.chars().take(fit - 1).collect();
    format!("{}…", kept.trim_end())
}

/// Returns a text in one line, or in two if it is too long for one.
pub(super) fn wrapped(text: &str, width: f64, letter: f64) -> Vec<String> {
    let fit = (width / letter).max(1.0) as usize;
    let space = text.char_indices().take(fit + 1).filter(|(_, letter)| *letter == ' ').last();
    match space {
        Some((at, _)) if text.chars().count() > fit => {
            vec![text[..at].to_owned(), shortened(&text[at + 1..], width, letter)]
        }
        _ => vec![shortened(text, width, letter)],
    }
}

/// Returns a text with the characters of XML replaced by entities.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns a coordinate with at most one decimal.
fn rounded(number: f64) -> String {
    let tenths = (number * 10.0).round() / 10.0;
    // Zero has a sign, which pictures need not show.
    if tenths == 0.0 { "0".to_owned() } else { tenths.to_string() }
}

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rectangle {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// The end of a text that is at its coordinate.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that is being written.
#[derive(Debug)]
pub(super) struct Svg(String);

impl Svg {
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let (width, height, title) = (rounded(width), rounded(height), escaped(title));
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n<rect width=\"{width}\" height=\"{height}\" \
             fill=\"{BACKGROUND}\"/>\n"
        ))
    }

    /// Begins a group with a text that browsers show above it.
    pub(super) fn open_group(&mut self, title: &str) {
        let _ = writeln!(self.0, "<g><title>{}</title>", escaped(title));
    }

    pub(super) fn close_group(&mut self) {
        self.0.push_str("</g>\n");
    }

    pub(super) fn rectangle(&mut self, at: Rectangle, class: &str) {
        self.any_rectangle(at, &format!("class=\"{class}\" rx=\"2\""));
    }

    pub(super) fn filled(&mut self, at: Rectangle, colour: &str) {
        self.any_rectangle(at, &format!("fill=\"{colour}\""));
    }

    fn any_rectangle(&mut self, at: Rectangle, look: &str) {
        let [x, y, width, height] = [at.x, at.y, at.width, at.height].map(rounded);
        let _ = writeln!(self.0, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {look}/>");
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        self.coloured(x, y, anchor, class, "", text);
    }

    /// Writes a text in a colour instead of that of its class.
    pub(super) fn coloured(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, colour: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let colour = if colour.is_empty() { String::new() } else { format!(" style=\"fill:{colour}\"") };
        let (x, y, text) = (rounded(x), rounded(y), escaped(text));
        let _ = writeln!(self.0, "<text x=\"{x}\" y=\"{y}\" class=\"{class}\"{anchor}{colour}>{text}</text>");
    }

    /// Draws a horizontal line of the grid.
    pub(super) fn rule(&mut self, from: f64, to: f64, y: f64) {
        let _ = writeln!(self.0, "<path d=\"M{} {}H{}\" class=\"g\"/>", rounded(from), rounded(y), rounded(to));
    }

    /// Draws a line through points. One point alone is a dot.
    pub(super) fn line(&mut self, parts: &[Vec<(f64, f64)>], colour: &str) {
        let path: String = parts.iter().map(|part| path(part)).collect();
        let _ = writeln!(
            self.0,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-linecap=\"round\" stroke-linejoin=\"round\"/>"
        );
    }

    /// Fills the area between an upper and a lower line.
    pub(super) fn area(&mut self, upper: &[(f64, f64)], lower: &[(f64, f64)], colour: &str) {
        let back: Vec<_> = lower.iter().rev().copied().collect();
        let around = format!("{}L{}Z", path(upper), path(&back).trim_start_matches('M'));
        let _ = writeln!(self.0, "<path d=\"{around}\" fill=\"{colour}\" fill-opacity=\"0.3\"/>");
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// Returns the commands of a path through points, without those inside of a horizontal stretch.
fn path(points: &[(f64, f64)]) -> String {
    let rounded: Vec<_> = points.iter().map(|(x, y)| (rounded(*x), rounded(*y))).collect();
    let inside = |index: usize| {
        let y = &rounded[index].1;
        index > 0 && rounded.get(index + 1).is_some_and(|next| next.1 == *y) && rounded[index - 1].1 == *y
    };
    let kept: Vec<_> = (0..rounded.len()).filter(|index| !inside(*index)).map(|index| &rounded[index]).collect();
    let mut text = String::new();
    for (number, (x, y)) in kept.iter().enumerate() {
        // Further pairs after M are lines.
        let _ = write!(text, "{}{x} {y}", if number == 0 { "M" } else { " " });
    }
    if kept.len() == 1 {
        text.push_str("h0");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened_and_escaped() {
        assert_eq!(shortened("short", 100.0, 6.0), "short");
        assert_eq!(shortened("a long text", 42.0, 6.0), "a long…");
        assert_eq!(wrapped("a long text", 42.0, 6.0), ["a long", "text"]);
        assert_eq!(wrapped("a text", 42.0, 6.0), ["a text"]);
        assert_eq!(wrapped("unbreakable", 42.0, 6.0), ["unbrea…"]);
        assert_eq!(escaped("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
    }

    #[test]
    fn paths_are_short() {
        assert_eq!(path(&[(0.0, 1.0), (1.0, 1.04), (2.0, 1.0), (3.0, 2.55), (4.0, -0.01)]), "M0 1 2 1 3 2.6 4 0");
        assert_eq!(path(&[(1.0, 2.0)]), "M1 2h0");
        assert_eq!(path(&[]), "");
    }

    #[test]
    fn a_group_is_closed_and_an_area_goes_around() {
        let mut svg = Svg::new(10.0, 20.0, "a");
        svg.open_group("b");
        svg.area(&[(0.0, 1.0), (5.0, 2.0)], &[(0.0, 9.0), (5.0, 8.0)], "red");
        svg.close_group();
        let text = svg.finish();
        assert!(text.contains("d=\"M0 1 5 2L5 8 0 9Z\""), "{text}");
        assert!(text.ends_with("</g>\n</svg>\n"));
    }
}
