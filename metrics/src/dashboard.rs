//! Writes Grafana dashboards: rows of panels, each with a title, a sentence, a unit and queries.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Label, query::Expr};

/// The tag of all dashboards; each links to the others by it.
pub const TAG: &str = "codex";
/// The columns of a dashboard.
pub const COLUMNS: u32 = 24;
/// The data source that the user chose.
const SOURCE: &str = "${datasource}";

/// The unit of the values of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelUnit {
    /// A number.
    Number,
    /// Seconds.
    Seconds,
    /// A share from 0 to 1, shown in percent.
    Share,
    /// Events per second.
    PerSecond,
    /// Requests per second.
    Requests,
    /// Floating-point operations per second.
    Flops,
    /// Degrees Celsius.
    Celsius,
    /// Watts.
    Watts,
}

impl PanelUnit {
    /// Returns the name of the unit in Grafana.
    pub fn name(self) -> &'static str {
        match self {
            Self::Number => "short",
            Self::Seconds => "s",
            Self::Share => "percentunit",
            Self::PerSecond => "ops",
            Self::Requests => "reqps",
            Self::Flops => "flops",
            Self::Celsius => "celsius",
            Self::Watts => "watt",
        }
    }
}

/// How a panel shows its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Lines over time, a third of the width.
    Lines,
    /// Lines over time, stacked.
    Stack,
    /// The latest number, in large print.
    Number,
    /// The latest number, red unless it is 0.
    Zero,
    /// The latest numbers as bars.
    Bars,
}

impl Shape {
    /// Returns the type in Grafana.
    fn kind(self) -> &'static str {
        match self {
            Self::Lines | Self::Stack => "timeseries",
            Self::Number | Self::Zero => "stat",
            Self::Bars => "bargauge",
        }
    }

    /// Returns the width in columns, and the height in lines of the grid.
    fn size(self) -> (u32, u32) {
        match self {
            Self::Lines | Self::Stack | Self::Bars => (8, 8),
            Self::Number | Self::Zero => (4, 4),
        }
    }
}

/// An area of the grid of a dashboard, in columns and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The first column.
    pub x: u32,
    /// The first line.
    pub y: u32,
    /// The number of columns.
    pub width: u32,
    /// The number of lines.
    pub height: u32,
}

impl Area {
    fn json(self) -> Value {
        json!({ "x": self.x, "y": self.y, "w": self.width, "h": self.height })
    }
}

/// What fills an area.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// The title of a row.
    Row(&'static str),
    /// A panel.
    Panel(&'a Panel),
}

/// Returns the legend of a series: `template` with each `{{label}}` replaced by the value of the label.
pub fn legend(template: &str, labels: &BTreeMap<String, String>) -> String {
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (label, rest) = part.split_once("}}").unwrap_or((part, ""));
        text.push_str(labels.get(label).map_or("", String::as_str));
        text.push_str(rest);
    }
    text
}

/// A panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Its title.
    pub title: &'static str,
    /// What it shows and what is normal, in a sentence.
    pub sentence: &'static str,
    /// The unit of its values.
    pub unit: PanelUnit,
    /// How it shows them.
    pub shape: Shape,
    /// What it shows instead of no data.
    pub empty: &'static str,
    /// Its queries, each with the legend of its series.
    pub queries: Vec<(Expr, String)>,
}

impl Panel {
    /// Returns a panel without queries.
    pub fn new(shape: Shape, unit: PanelUnit, title: &'static str, sentence: &'static str) -> Self {
        Self { title, sentence, unit, shape, empty: "no data", queries: Vec::new() }
    }

    /// Adds a query. Its legend is the values of these labels.
    #[must_use]
    pub fn by(mut self, query: &Expr, labels: &[Label]) -> Self {
        let legend: Vec<_> = labels.iter().map(|label| format!("{{{{{}}}}}", label.name)).collect();
        self.queries.push((query.clone(), legend.join(" ")));
        self
    }

    /// Adds a query with this legend.
    #[must_use]
    pub fn named(mut self, query: &Expr, legend: &str) -> Self {
        self.queries.push((query.clone(), legend.to_owned()));
        self
    }

    /// Sets what the panel shows instead of no data.
    #[must_use]
    pub fn when_empty(mut self, empty: &'static str) -> Self {
        self.empty = empty;
        self
    }

    /// Returns whether its axis starts at 0, even if all values are far from it. Learning curves and margins may be below 0.
    pub fn from_zero(&self) -> bool {
        self.unit != PanelUnit::Number || self.shape != Shape::Lines
    }

    fn json(&self, id: usize, area: Area) -> Value {
        let mut defaults = json!({ "unit": self.unit.name(), "noValue": self.empty, "min": 0 });
        match self.shape {
            Shape::Lines | Shape::Stack => {
                let stacked = self.shape == Shape::Stack;
                defaults["custom"] = json!({
                    "fillOpacity": if stacked { 30 } else { 0 },
                    "stacking": { "mode": if stacked { "normal" } else { "none" } },
                });
                if !self.from_zero() {
                    defaults["min"] = Value::Null;
                }
            }
            Shape::Zero => {
                defaults["color"] = json!({ "mode": "thresholds" });
                defaults["thresholds"] = json!({ "mode": "absolute", "steps": [{ "color": "green", "value": null }, { "color": "red", "value": 1 }] });
            }
            Shape::Number | Shape::Bars => {}
        }
        let options = match self.shape {
            Shape::Lines | Shape::Stack => json!({ "legend": { "displayMode": "list", "placement": "bottom" } }),
            _ => json!({ "reduceOptions": { "calcs": ["lastNotNull"], "values": false } }),
        };
        let instant = matches!(self.shape, Shape::Bars);
        let targets: Vec<_> = self
            .queries
            .iter()
            .zip('A'..)
            .map(|((query, legend), id)| {
                json!({
                    "refId": id.to_string(),
                    "expr": query.to_string(),
                    "legendFormat": legend,
                    "instant": instant,
                    "range": !instant,
                    "datasource": { "type": "prometheus", "uid": SOURCE },
                })
            })
            .collect();
        json!({
            "id": id,
            "type": self.shape.kind(),
            "title": self.title,
            "description": self.sentence,
            "datasource": { "type": "prometheus", "uid": SOURCE },
            "gridPos": area.json(),
            "fieldConfig": { "defaults": defaults, "overrides": [] },
            "options": options,
            "targets": targets,
        })
    }
}

/// A dashboard.
#[derive(Clone, Debug)]
pub struct Dashboard {
    /// Its uid, which never changes; it is also the name of its file.
    pub uid: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it answers, in a sentence.
    pub sentence: &'static str,
    /// A query whose series hold the namespaces to choose from, if one can be chosen.
    pub namespaces: Option<Expr>,
    /// The rows: a title, and the panels from left to right.
    pub rows: Vec<(&'static str, Vec<Panel>)>,
}

impl Dashboard {
    /// Returns all panels.
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|(_, panels)| panels)
    }

    /// Returns what fills which area, from top to bottom. A row whose panels are wider than the dashboard continues below.
    pub fn layout(&self) -> Vec<(Area, Item<'_>)> {
        let (mut layout, mut y) = (Vec::new(), 0);
        for (title, row) in &self.rows {
            layout.push((Area { x: 0, y, width: COLUMNS, height: 1 }, Item::Row(title)));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in row {
                let (width, height) = panel.shape.size();
                if x + width > COLUMNS {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                layout.push((Area { x, y, width, height }, Item::Panel(panel)));
                (x, tallest) = (x + width, tallest.max(height));
            }
            y += tallest;
        }
        layout
    }

    /// Returns the dashboard in Grafana's JSON.
    pub fn json(&self) -> Value {
        let item = |(id, (area, item)): (usize, (Area, Item<'_>))| match item {
            Item::Row(title) => json!({
                "id": id, "type": "row", "title": title, "collapsed": false, "gridPos": area.json(), "panels": [],
            }),
            Item::Panel(panel) => panel.json(id, area),
        };
        let panels: Vec<_> = (1..).zip(self.layout()).map(item).collect();
        let mut variables = vec![json!({
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0, "current": {},
        })];
        if let Some(query) = &self.namespaces {
            let query = format!("label_values({query}, namespace)");
            variables.push(json!({
                "name": "namespace", "label": "Namespace", "type": "query",
                "datasource": { "type": "prometheus", "uid": SOURCE },
                "query": { "query": query, "refId": "namespaces" }, "definition": query,
                "includeAll": true, "multi": true, "allValue": ".*", "refresh": 2, "sort": 1,
                "current": { "text": "All", "value": "$__all" },
            }));
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.sentence,
            "tags": [TAG],
            "schemaVersion": 39,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "",
            "annotations": { "list": [] },
            "templating": { "list": variables },
            "links": [{
                "type": "dashboards", "title": "Codex", "tags": [TAG], "asDropdown": false, "includeVars": true,
                "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
            }],
            "panels": panels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legends_hold_the_values_of_labels() {
        let labels =
            [("kind", "TrainingRun"), ("verb", "apply")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let labels = BTreeMap::from(labels);
        assert_eq!(legend("{{kind}} {{verb}}", &labels), "TrainingRun apply");
        assert_eq!(legend("p95", &labels), "p95");
        assert_eq!(legend("{{pod}}!", &labels), "!");
    }
}
