//! What a namespace allows its pods: `ResourceQuota`s and `LimitRange`s, compared with the servers of a ReasoningPod as the API server
//! compares them. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Chain, Quantity};

/// Quantities by the name of their resource.
type Amounts = BTreeMap<String, Quantity>;

/// What pods use, by the names that a quota has: `pods`, `requests.cpu`, `limits.memory`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(Amounts);

/// The limits of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    quotas: Vec<Quota>,
    ranges: Vec<Range>,
    /// What the present servers use, which a new rollout replaces.
    own: Usage,
}

/// A `ResourceQuota` that servers count in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Quota {
    name: String,
    hard: Amounts,
    used: Amounts,
    scopes: Vec<Scope>,
}

/// A scope of a quota: which pods count.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    name: String,
    operator: String,
    values: Vec<String>,
}

/// An entry of a `LimitRange` for containers or pods. A server pod has one container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    name: String,
    min: Amounts,
    max: Amounts,
    ratio: Amounts,
    default: Amounts,
    default_request: Amounts,
}

/// The requests and limits of a server, with the defaults of the namespace.
#[derive(Clone, Debug, Default)]
struct Effective {
    requests: Amounts,
    limits: Amounts,
}

impl Usage {
    /// Adds a container, whose object is `resources`.
    pub fn add_container(&mut self, resources: &Value) {
        for list in ["requests", "limits"] {
            for (name, quantity) in resources[list].as_object().into_iter().flatten() {
                self.add(&format!("{list}.{name}"), Quantity::of(quantity).unwrap_or_default());
            }
        }
    }

    /// Adds a pod, without its containers.
    pub fn add_pod(&mut self) {
        self.add("pods", Quantity::whole(1));
    }

    fn add(&mut self, name: &str, quantity: Quantity) {
        let sum = self.get(name).plus(quantity);
        self.0.insert(name.to_owned(), sum);
    }

    fn get(&self, name: &str) -> Quantity {
        self.0.get(name).copied().unwrap_or_default()
    }
}

impl Allowances {
    /// Reads the `ResourceQuota`s and `LimitRange`s among these objects, and ignores all others.
    ///
    /// # Errors
    /// A quantity cannot be read; one sentence.
    pub fn of<'a>(objects: impl Iterator<Item = &'a Value>) -> Result<Self, String> {
        let mut allowances = Self::default();
        for object in objects.filter(|object| object["apiVersion"] == "v1") {
            match object["kind"].as_str() {
                Some("ResourceQuota") => allowances.quotas.push(Quota::read(object)?),
                Some("LimitRange") => allowances.ranges.extend(Range::read(object)?),
                _ => {}
            }
        }
        Ok(allowances)
    }

    /// Returns the same with what the present servers use: quotas count them, and new servers replace them.
    #[must_use]
    pub fn with_own(self, own: Usage) -> Self {
        Self { own, ..self }
    }

    /// Returns why the API server would refuse the servers of a ReasoningPod, in sentences that say what to change.
    pub(crate) fn refusals(&self, chain: &Chain) -> Vec<String> {
        let effective = self.effective(chain);
        let ranges = self.ranges.iter().flat_map(|range| range.refusals(&effective));
        let quotas = self.quotas.iter().filter(|quota| quota.counts(chain, &effective));
        let quotas = quotas.flat_map(|quota| quota.refusals(&effective, chain.replicas(), &self.own));
        ranges.chain(quotas).collect()
    }

    /// Names the limits that the servers of a ReasoningPod keep, in one sentence if there are any.
    pub(crate) fn told(&self, chain: &Chain) -> Option<String> {
        let effective = self.effective(chain);
        let quotas = self.quotas.iter().filter(|quota| quota.counts(chain, &effective));
        let quotas = quotas.map(|quota| format!("ResourceQuota {}", quota.name));
        let ranges = self.ranges.iter().map(|range| format!("LimitRange {}", range.name));
        let mut all: Vec<String> = quotas.chain(ranges).collect();
        all.dedup();
        (!all.is_empty()).then(|| format!("the servers are within {}", all.join(", ")))
    }

    /// Returns the requests and limits that a server gets: a request that is missing is the limit, and a `LimitRange` has defaults for
    /// the rest.
    fn effective(&self, chain: &Chain) -> Effective {
        let stated = |list: &str| -> Amounts {
            chain.resources(list).filter_map(|(name, it)| Some((name.to_owned(), Quantity::of(it)?))).collect()
        };
        let mut effective = Effective { requests: stated("requests"), limits: stated("limits") };
        fill(&mut effective.requests, &effective.limits);
        for range in &self.ranges {
            fill(&mut effective.limits, &range.default);
            fill(&mut effective.requests, &range.default_request);
        }
        effective
    }
}

/// Adds the amounts of resources that `amounts` lacks.
fn fill(amounts: &mut Amounts, defaults: &Amounts) {
    for (name, quantity) in defaults {
        amounts.entry(name.clone()).or_insert(*quantity);
    }
}

/// Reads quantities by the names of their resources.
fn amounts(label: &str, field: &str, value: &Value) -> Result<Amounts, String> {
    let read = |(name, quantity): (&String, &Value)| {
        let why = || format!("{label}: {field}.{name} is {quantity}: write a quantity, such as 2 or 4Gi");
        Ok((name.clone(), Quantity::of(quantity).ok_or_else(why)?))
    };
    value.as_object().into_iter().flatten().map(read).collect()
}

fn name_of(object: &Value) -> String {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Quota {
    fn read(object: &Value) -> Result<Self, String> {
        let name = name_of(object);
        let label = format!("ResourceQuota {name}");
        let hard = amounts(&label, "spec.hard", &object["spec"]["hard"])?;
        let used = amounts(&label, "status.used", &object["status"]["used"])?;
        let plain = texts(&object["spec"]["scopes"]).into_iter().map(|name| Scope {
            name,
            operator: "Exists".to_owned(),
            values: Vec::new(),
        });
        let selected = object["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
        let selected = selected.map(|expression| Scope {
            name: expression["scopeName"].as_str().unwrap_or_default().to_owned(),
            operator: expression["operator"].as_str().unwrap_or_default().to_owned(),
            values: texts(&expression["values"]),
        });
        let scopes = plain.chain(selected).collect();
        Ok(Self { name, hard: canonical(hard), used: canonical(used), scopes })
    }

    /// Whether servers count in this quota: every scope selects them.
    fn counts(&self, chain: &Chain, effective: &Effective) -> bool {
        self.scopes.iter().all(|scope| scope.selects(chain, effective))
    }

    fn refusals(&self, effective: &Effective, replicas: i64, own: &Usage) -> Vec<String> {
        self.hard.iter().filter_map(|(name, hard)| self.refusal(name, *hard, effective, replicas, own)).collect()
    }

    /// Returns why this quota has no room for the servers in one of its resources.
    fn refusal(&self, name: &str, hard: Quantity, effective: &Effective, replicas: i64, own: &Usage) -> Option<String> {
        let each = match name.split_once('.') {
            _ if name == "pods" => Quantity::whole(1),
            Some(("requests", resource)) => match effective.requests.get(resource) {
                Some(quantity) => *quantity,
                None => return self.unset(name, resource),
            },
            Some(("limits", resource)) => match effective.limits.get(resource) {
                Some(quantity) => *quantity,
                None => return self.unset(name, resource),
            },
            _ => return None,
        };
        let used = self.used.get(name).copied().unwrap_or_default().less(own.get(name));
        let needed = each.times(replicas);
        (used.plus(needed) > hard).then(|| {
            format!(
                "ResourceQuota {} allows {} of {name}, others use {}, and spec.replicas: {replicas} needs {}: lower it, or raise the quota",
                self.name,
                hard.shown(name),
                used.shown(name),
                needed.shown(name)
            )
        })
    }

    /// Returns why a server that does not state a resource is refused. Extended resources need no statement.
    fn unset(&self, name: &str, resource: &str) -> Option<String> {
        ["cpu", "memory", "ephemeral-storage"].contains(&resource).then(|| {
            format!(
                "ResourceQuota {} limits {name}, and spec.pod.resources.{name} is not set: the API server refuses such a pod; set it",
                self.name
            )
        })
    }
}

/// Returns the amounts under the names that say what they bound: `cpu` is `requests.cpu`.
fn canonical(amounts: Amounts) -> Amounts {
    let named = |name: String| match name.as_str() {
        "count/pods" => "pods".to_owned(),
        "cpu" | "memory" | "ephemeral-storage" => format!("requests.{name}"),
        _ => name,
    };
    let mut all = Amounts::new();
    for (name, quantity) in amounts {
        // Both names may be given: the smaller limit decides.
        let least = all.entry(named(name)).or_insert(quantity);
        *least = quantity.min(*least);
    }
    all
}

impl Scope {
    fn selects(&self, chain: &Chain, effective: &Effective) -> bool {
        let is_best_effort = effective.requests.is_empty() && effective.limits.is_empty();
        match (self.name.as_str(), self.operator.as_str()) {
            ("NotTerminating", _) => true,
            ("BestEffort", _) => is_best_effort,
            ("NotBestEffort", _) => !is_best_effort,
            ("PriorityClass", operator) => {
                let class = chain.priority_class();
                let listed = class.is_some_and(|class| self.values.iter().any(|value| value == class));
                match operator {
                    "In" => listed,
                    "NotIn" => !listed,
                    "DoesNotExist" => class.is_none(),
                    _ => class.is_some(),
                }
            }
            // A server has no deadline (`Terminating`) and no affinity across namespaces; other scopes are not those of pods.
            _ => false,
        }
    }
}

impl Range {
    /// Reads the entries for containers and pods.
    fn read(object: &Value) -> Result<Vec<Self>, String> {
        let name = name_of(object);
        let label = format!("LimitRange {name}");
        let entries = object["spec"]["limits"].as_array().into_iter().flatten().enumerate();
        let of_pods = entries.filter(|(_, entry)| entry["type"] == "Container" || entry["type"] == "Pod");
        of_pods
            .map(|(index, entry)| {
                let read = |field: &str| amounts(&label, &format!("spec.limits[{index}].{field}"), &entry[field]);
                let mut range = Self {
                    name: name.clone(),
                    min: read("min")?,
                    max: read("max")?,
                    ratio: read("maxLimitRequestRatio")?,
                    default: read("default")?,
                    default_request: read("defaultRequest")?,
                };
                if entry["type"] == "Container" {
                    // The API server stores an entry for containers with these.
                    fill(&mut range.default, &range.max);
                    fill(&mut range.default_request, &range.default);
                    fill(&mut range.default_request, &range.min);
                }
                Ok(range)
            })
            .collect()
    }

    fn refusals(&self, effective: &Effective) -> Vec<String> {
        let Effective { requests, limits } = effective;
        let mut refusals = Vec::new();
        let mut refuse = |list: &str, name: &str, found: Option<&Quantity>, bound: &str| {
            let field = format!("spec.pod.resources.{list}.{name}");
            let found = found.map_or_else(|| "is not set".to_owned(), |found| format!("is {}", found.shown(name)));
            refusals.push(format!("{field} {found}, and LimitRange {} asks for {bound}: change it", self.name));
        };
        for (name, min) in &self.min {
            let bound = format!("at least {}", min.shown(name));
            if requests.get(name).is_none_or(|request| request < min) {
                refuse("requests", name, requests.get(name), &bound);
            }
            if limits.get(name).is_some_and(|limit| limit < min) {
                refuse("limits", name, limits.get(name), &bound);
            }
        }
        for (name, max) in &self.max {
            let bound = format!("at most {}", max.shown(name));
            if limits.get(name).is_none_or(|limit| limit > max) {
                refuse("limits", name, limits.get(name), &bound);
            }
            if requests.get(name).is_some_and(|request| request > max) {
                refuse("requests", name, requests.get(name), &bound);
            }
        }
        for (name, ratio) in &self.ratio {
            let within = limits.get(name).zip(requests.get(name));
            let within = within.and_then(|(limit, request)| Quantity::is_within(*limit, *request, *ratio));
            if within != Some(true) {
                refuse("limits", name, limits.get(name), &format!("at most {ratio} times the request"));
            }
        }
        refusals
    }
}
