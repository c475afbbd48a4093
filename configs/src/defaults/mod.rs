//! Defaults lists: the files that a configuration consists of, in their order, by the rules of Hydra. Pure.
//!
//! The primary file is `spec.config`. Below it are `training/base.yaml` and the template. An option that an override chooses and no list
//! has stands between template and primary file, as if the template were followed by `GROUP: null`; if the primary file has a list, a
//! `+` adds the choice to the end of it, and only what is in a list can be replaced.

mod entry;

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::Value as Yaml;

use crate::{
    ConfigError, Origin,
    error::{meant, nearest},
    keys::reserved,
    layers::MAX_CONFIG,
    options::{Catalog, GroupChange, OptionGroup},
};

pub use entry::names_template;
pub(crate) use entry::{DEFAULTS, is_header};
use entry::{Entry, Mode, Options};

/// Maximum number of entries of a list.
pub(crate) const MAX_ENTRIES: usize = 64;
/// The package of keys that stand at the top.
const GLOBAL: &str = "_global_";

/// A file of settings in its place among the layers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part<'a> {
    /// The file.
    pub(crate) origin: Origin,
    /// Its text.
    pub(crate) text: &'a str,
    /// The key below which its contents stand. Empty for the top.
    pub(crate) package: String,
    /// The files whose lists include it, the outermost first, and itself if it has a list.
    pub(crate) within: Vec<Origin>,
}

/// A file, before its list is followed.
#[derive(Clone, Debug)]
struct File<'a> {
    origin: Origin,
    text: &'a str,
    /// The group that it is an option of. Empty for the primary file.
    group: String,
    package: String,
}

/// An entry of a list with what messages say of it.
#[derive(Clone, Debug)]
struct Item {
    entry: Entry,
    place: Place,
}

/// What chooses an option.
#[derive(Clone, Debug)]
struct Place {
    origin: Origin,
    /// The index in the defaults list. `None` for an override.
    index: Option<usize>,
    text: String,
}

/// A choice that replaces those of lists.
#[derive(Clone, Debug)]
struct Replacement {
    options: Options,
    place: Place,
    is_used: bool,
}

/// A choice of an override.
#[derive(Clone, Debug)]
struct External {
    group: &'static str,
    /// The package, if it is not that of the group.
    package: Option<String>,
    options: Options,
    /// Whether the choice is added to those of lists, and replaces none.
    adds: bool,
    place: Place,
}

/// The removal of a choice by an override.
#[derive(Clone, Debug)]
struct Removal {
    /// The option that is removed. `None` for any.
    option: Option<String>,
    place: Place,
    is_used: bool,
}

/// What overrides do with groups, by the key of the choice.
#[derive(Clone, Debug, Default)]
struct Externals {
    choices: BTreeMap<String, External>,
    removals: BTreeMap<String, Removal>,
}

/// What is looked for in the catalog.
struct Wanted<'w> {
    /// The group, from the top.
    group: &'w str,
    /// The package as it is written.
    package: Option<&'w str>,
    /// The package of a file that names none in its header.
    default: String,
    /// The package of the file with the list.
    parent: &'w str,
    is_optional: bool,
    within: &'w [Origin],
    place: &'w Place,
}

/// Follows the lists. The last entry comes first, so that the overrides of a list are known before the choices above it.
struct Expansion {
    catalog: &'static Catalog,
    replacements: BTreeMap<String, Replacement>,
    removals: BTreeMap<String, Removal>,
    /// The choices that have an option, by key.
    taken: BTreeMap<String, Place>,
    /// The keys of all choices.
    known: BTreeSet<String>,
}

/// Returns the parts of a configuration, the weakest first. `below` are the files under the primary one, with their texts.
///
/// # Errors
/// [`ConfigError`] names the entry or the override that is wrong, and what to write instead.
pub(crate) fn parts<'a>(
    catalog: &'static Catalog,
    below: &[(Origin, &'a str)],
    config: Option<&'a str>,
    overrides: &[String],
) -> Result<Vec<Part<'a>>, ConfigError> {
    let externals = Externals::read(catalog, overrides)?;
    let is_listed = config.is_some_and(|text| text.len() <= MAX_CONFIG && entry::list(text).is_some());
    let added = externals.choices.iter().filter(|(_, choice)| choice.adds);
    let mut slots: Vec<&str> = added.map(|(key, _)| key.as_str()).collect();
    // A choice that no list has gets a place of its own. The file that it brings may have a list in turn.
    loop {
        slots.sort_by_key(|key| (catalog.position(key), *key));
        let mut expansion = Expansion::new(catalog, &externals);
        let parts = expansion.all(below, (config, is_listed), &externals, &slots)?;
        let Some((key, place)) = expansion.unmatched() else { return expansion.check_removals().map(|()| parts) };
        let fits = !is_listed && place.index.is_none() && catalog.group(key).is_some();
        match externals.choices.get_key_value(key).filter(|_| fits) {
            Some((key, _)) => slots.push(key),
            None => return Err(expansion.refuse_replacement(key, place)),
        }
    }
}

impl Externals {
    /// Takes the choices of groups out of overrides. Of several choices of a group the last one counts.
    fn read(catalog: &'static Catalog, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut externals = Self::default();
        for (index, text) in overrides.iter().enumerate() {
            let Some(change) = catalog.change(text) else { continue };
            let place = Place { origin: Origin::Override(index), index: None, text: text.trim().to_owned() };
            match change {
                GroupChange::Choose { adds, group, package, raw } => {
                    let options = match serde_yaml::from_str::<Yaml>(raw) {
                        Ok(value @ (Yaml::Null | Yaml::Sequence(_))) => {
                            entry::options(&value).map_err(|right| place.refuse(right))?
                        }
                        _ => Options::Chosen(vec![raw.to_owned()]),
                    };
                    let group = group.name;
                    let key = key(group, &absolute(package, group));
                    let package = package.map(str::to_owned);
                    externals.choices.insert(key, External { group, package, options, adds, place });
                }
                GroupChange::Remove { group, package, option } => {
                    let key = key(group.name, &absolute(package, group.name));
                    let option = option.map(str::to_owned);
                    externals.removals.insert(key, Removal { option, place, is_used: false });
                }
            }
        }
        Ok(externals)
    }
}

/// Returns the package of a choice at the top, which is that of the group unless another one is written.
fn absolute(package: Option<&str>, group: &str) -> String {
    package.map_or_else(|| dotted(group), |package| resolved(package, "", group, "_name_"))
}

/// Returns the package that a group has by its name.
fn dotted(group: &str) -> String {
    group.replace('/', ".")
}

/// Returns what tells a choice from others: the group, and the package if it is not that of the group.
fn key(group: &str, package: &str) -> String {
    match package {
        package if package == dotted(group) => group.to_owned(),
        "" => format!("{group}@{GLOBAL}"),
        package => format!("{group}@{package}"),
    }
}

/// Returns the key that a package stands for, which is relative to `parent` unless it begins at the top.
fn resolved(package: &str, parent: &str, group: &str, option: &str) -> String {
    let package = package.replace("_group_", &dotted(group)).replace("_name_", option);
    match package.rsplit_once(GLOBAL) {
        Some((_, rest)) => rest.trim_start_matches('.').to_owned(),
        None if package == "_here_" => parent.to_owned(),
        None => joined(parent, &package),
    }
}

/// Returns the package that a file of the user names in its header.
fn package_of(text: &str) -> String {
    entry::header(text).map(|header| resolved(header, "", "", "")).unwrap_or_default()
}

fn joined(parent: &str, package: &str) -> String {
    match (parent, package) {
        ("", package) => package.to_owned(),
        (parent, "") => parent.to_owned(),
        (parent, package) => format!("{parent}.{package}"),
    }
}

impl Place {
    fn refuse(&self, right: String) -> ConfigError {
        let Self { origin, index, text } = self.clone();
        ConfigError::Choice { origin, index, text, right }
    }
}

impl<'a> File<'a> {
    /// Returns the contents of the file as a part.
    fn part(&self, within: &[Origin]) -> Part<'a> {
        let (origin, package) = (self.origin.clone(), self.package.clone());
        Part { origin, text: self.text, package, within: within.to_vec() }
    }

    /// Returns the defaults list; `None` if the file has none.
    fn items(&self) -> Result<Option<Vec<Item>>, ConfigError> {
        let embedded = matches!(self.origin, Origin::Group(_));
        if self.text.len() > MAX_CONFIG || (embedded && !entry::is_listed(self.text)) {
            return Ok(None);
        }
        let list = match entry::list(self.text) {
            None => return Ok(None),
            Some(Yaml::Null) => Vec::new(),
            Some(Yaml::Sequence(list)) if list.len() <= MAX_ENTRIES => list,
            Some(other) => {
                let found = match &other {
                    Yaml::Sequence(list) => format!("{} entries", list.len()),
                    other => entry::shown(other),
                };
                return Err(ConfigError::NotAList { origin: self.origin.clone(), found, most: MAX_ENTRIES });
            }
        };
        let items = list.iter().enumerate().map(|(index, item)| {
            let place = Place { origin: self.origin.clone(), index: Some(index), text: entry::shown(item) };
            let entry = entry::entry(item).map_err(|right| place.refuse(right))?;
            Ok::<_, ConfigError>(Item { entry, place })
        });
        let mut items = items.collect::<Result<Vec<Item>, ConfigError>>()?;
        check_order(&items)?;
        if !items.iter().any(|item| item.entry == Entry::Own) {
            let place = Place { origin: self.origin.clone(), index: None, text: String::new() };
            items.push(Item { entry: Entry::Own, place });
        }
        Ok(Some(items))
    }

    /// Returns a group from the top, and its package if none is written.
    fn address(&self, group: &str) -> (String, String) {
        let relative = group.strip_prefix('/').unwrap_or(group);
        let is_absolute = group.starts_with('/') || self.group.is_empty();
        let absolute = if is_absolute { relative.to_owned() } else { format!("{}/{relative}", self.group) };
        (absolute, joined(&self.package, &dotted(relative)))
    }
}

/// Checks that a list names the file itself at most once, and that its overrides stand at the end.
fn check_order(items: &[Item]) -> Result<(), ConfigError> {
    let (mut own, mut overriding) = (false, false);
    for Item { entry, place } in items {
        match entry {
            Entry::Own if own => return Err(place.refuse("write it once".to_owned())),
            Entry::Own => own = true,
            Entry::Group { mode: Mode::Override, .. } => overriding = true,
            _ if overriding => {
                return Err(place.refuse("write it before all entries with override".to_owned()));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Expansion {
    fn new(catalog: &'static Catalog, externals: &Externals) -> Self {
        let replacing = externals.choices.iter().filter(|(_, choice)| !choice.adds);
        let replacements = replacing.map(|(key, External { options, place, .. })| {
            (key.clone(), Replacement { options: options.clone(), place: place.clone(), is_used: false })
        });
        Self {
            catalog,
            replacements: replacements.collect(),
            removals: externals.removals.clone(),
            taken: BTreeMap::new(),
            known: BTreeSet::new(),
        }
    }

    /// Returns all parts. The last file comes first, as in a list.
    fn all<'a>(
        &mut self,
        below: &[(Origin, &'a str)],
        (config, is_listed): (Option<&'a str>, bool),
        externals: &Externals,
        slots: &[&str],
    ) -> Result<Vec<Part<'a>>, ConfigError> {
        let mut pieces = Vec::new();
        if is_listed {
            pieces.push(self.slots(externals, slots)?);
        }
        if let Some(text) = config {
            let (group, package) = (String::new(), package_of(text));
            pieces.push(self.expand(&File { origin: Origin::Config, text, group, package }, &[])?);
        }
        if !is_listed {
            pieces.push(self.slots(externals, slots)?);
        }
        for (origin, text) in below.iter().rev() {
            let group = self.catalog.field.name.to_owned();
            let package = if *origin == Origin::Template { package_of(text) } else { String::new() };
            let file = File { origin: origin.clone(), text, group, package };
            pieces.push(self.expand(&file, &[])?);
        }
        Ok(pieces.into_iter().rev().flatten().collect())
    }

    /// Returns the parts of choices that no list has.
    fn slots(&mut self, externals: &Externals, slots: &[&str]) -> Result<Vec<Part<'static>>, ConfigError> {
        let mut pieces = Vec::new();
        for key in slots.iter().rev() {
            let Some(choice) = externals.choices.get(*key) else { continue };
            let wanted = Wanted {
                group: choice.group,
                package: choice.package.as_deref(),
                default: dotted(choice.group),
                parent: "",
                is_optional: false,
                within: &[],
                place: &choice.place,
            };
            pieces.push(self.choose(&wanted, key, &choice.options)?);
        }
        Ok(pieces.into_iter().rev().flatten().collect())
    }

    /// Follows the list of a file.
    fn expand<'a>(&mut self, file: &File<'a>, within: &[Origin]) -> Result<Vec<Part<'a>>, ConfigError> {
        let Some(items) = file.items()? else { return Ok(vec![file.part(within)]) };
        let within = [within, std::slice::from_ref(&file.origin)].concat();
        for Item { entry, place } in &items {
            if let Entry::Group { mode: Mode::Override, group, package, options } = entry {
                self.replace(file, group, package.as_deref(), options, place)?;
            }
        }
        let mut pieces = Vec::new();
        for Item { entry, place } in items.iter().rev() {
            match entry {
                Entry::Own => pieces.push(vec![file.part(&within)]),
                Entry::File { path, package } => {
                    pieces.push(self.file(file, path, package.as_deref(), &within, place)?);
                }
                Entry::Group { mode: Mode::Override, .. } => {}
                Entry::Group { mode, group, package, options } => {
                    let (group, default) = file.address(group);
                    let package = package.as_deref();
                    let is_optional = *mode == Mode::Optional;
                    if is_optional && self.catalog.group(&group).is_none() {
                        continue;
                    }
                    let key = self.key_of(file, &group, package, &default, place)?;
                    let wanted = Wanted {
                        group: &group,
                        package,
                        default,
                        parent: &file.package,
                        is_optional,
                        within: &within,
                        place,
                    };
                    pieces.push(self.choose(&wanted, &key, options)?);
                }
            }
        }
        Ok(pieces.into_iter().rev().flatten().collect())
    }

    /// Returns the key of a choice in the list of a file.
    fn key_of(
        &self,
        file: &File<'_>,
        group: &str,
        package: Option<&str>,
        default: &str,
        place: &Place,
    ) -> Result<String, ConfigError> {
        if self.catalog.group(group).is_none() {
            return Err(self.no_group(group, place));
        }
        let written = package.map(|package| resolved(package, &file.package, group, "_name_"));
        Ok(key(group, written.as_deref().unwrap_or(default)))
    }

    /// Records an entry with override. What is recorded first counts: overrides before lists, outer lists before inner ones.
    fn replace(
        &mut self,
        file: &File<'_>,
        group: &str,
        package: Option<&str>,
        options: &Options,
        place: &Place,
    ) -> Result<(), ConfigError> {
        let (group, default) = file.address(group);
        let key = self.key_of(file, &group, package, &default, place)?;
        let replacement = Replacement { options: options.clone(), place: place.clone(), is_used: false };
        let before = self.replacements.entry(key.clone()).or_insert(replacement);
        let twice = before.place.origin == place.origin && before.place.index != place.index;
        if twice { Err(place.refuse(format!("another entry overrides {key}; remove one of the two"))) } else { Ok(()) }
    }

    /// Returns the parts of a choice: of what replaces it, else of its own options.
    fn choose(&mut self, wanted: &Wanted<'_>, key: &str, options: &Options) -> Result<Vec<Part<'static>>, ConfigError> {
        self.known.insert(key.to_owned());
        let replacement = self.replacements.get_mut(key).map(|it| {
            it.is_used = true;
            it.clone()
        });
        let is_optional = wanted.is_optional && replacement.is_none();
        let (options, place) = match &replacement {
            Some(it) => (&it.options, &it.place),
            None => (options, wanted.place),
        };
        let Options::Chosen(names) = options else {
            let known = self.catalog.group(wanted.group).map(OptionGroup::names).unwrap_or_default().join(", ");
            return Err(
                place.refuse(format!("choose an option of {key}, such as by the override {key}=NAME: one of {known}"))
            );
        };
        if let Some(removal) = self.removals.get_mut(key)
            && removal.option.as_ref().is_none_or(|option| *names == [option.as_str()])
        {
            removal.is_used = true;
            return Ok(Vec::new());
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(other) = self.taken.insert(key.to_owned(), place.clone()) {
            return Err(twice(key, place, &other));
        }
        let Wanted { group, package, parent, within, .. } = *wanted;
        let default = wanted.default.clone();
        let wanted = Wanted { group, package, default, parent, is_optional, within, place };
        let mut pieces = Vec::new();
        for name in names.iter().rev() {
            pieces.push(self.option(&wanted, name)?);
        }
        Ok(pieces.into_iter().rev().flatten().collect())
    }

    /// Returns the parts of a file that a list names without a choice.
    fn file(
        &mut self,
        file: &File<'_>,
        path: &str,
        package: Option<&str>,
        within: &[Origin],
        place: &Place,
    ) -> Result<Vec<Part<'static>>, ConfigError> {
        let (directory, option) = match path.rsplit_once('/') {
            Some((directory, option)) => (Some(directory), option),
            None => (None, path),
        };
        let (group, default) = match directory {
            None if !file.group.is_empty() => (file.group.clone(), file.package.clone()),
            Some(directory) if !directory.is_empty() => file.address(directory),
            _ => return Err(place.refuse(format!("name a group and an option: {}", self.catalog.listed()))),
        };
        let parent = file.package.as_str();
        // Templates and presets have no package, and only files of their own kind are composed with them.
        let is_field = group == self.catalog.field.name;
        if is_field && file.group != group {
            return Err(self.no_group(&group, place));
        }
        let default = if is_field { file.package.clone() } else { default };
        let wanted = Wanted { group: &group, package, default, parent, is_optional: false, within, place };
        self.option(&wanted, option)
    }

    /// Returns the parts of an option of a group.
    fn option(&mut self, wanted: &Wanted<'_>, option: &str) -> Result<Vec<Part<'static>>, ConfigError> {
        let Wanted { group, package, default, parent, is_optional, within, place } = wanted;
        let catalog = self.catalog;
        let Some(found) = catalog.directory(group) else { return Err(self.no_group(group, place)) };
        let Some((path, text)) = found.option(option) else {
            return if *is_optional { Ok(Vec::new()) } else { Err(no_option(found, option, place)) };
        };
        let origin = Origin::Group(path);
        if let Some(first) = within.iter().position(|it| *it == origin) {
            let circle: Vec<String> = within.iter().skip(first).chain([&origin]).map(ToString::to_string).collect();
            let circle = circle.join(" to ");
            return Err(place.refuse(format!("the files go in a circle, from {circle}; remove one of the entries")));
        }
        let package = match (package, entry::header(text)) {
            (Some(package), _) => resolved(package, parent, group, option),
            // A header counts from the top.
            (None, Some(header)) => resolved(header, "", group, option),
            (None, None) => default.clone(),
        };
        let file = File { origin, text, group: found.name.to_owned(), package };
        self.expand(&file, within)
    }

    /// Returns the first choice that replaces none.
    fn unmatched(&self) -> Option<(&String, &Place)> {
        self.replacements.iter().find(|(_, it)| !it.is_used).map(|(key, it)| (key, &it.place))
    }

    /// Returns the error of a choice that replaces none.
    fn refuse_replacement(&self, key: &str, place: &Place) -> ConfigError {
        let group = key.split('@').next().unwrap_or_default();
        if self.known.contains(key) {
            let right = format!("{key} is chosen behind it; write what overrides a choice behind the choice");
            return place.refuse(right);
        }
        let others = self.known.iter().filter(|known| known.split('@').next() == Some(group));
        let others = others.map(String::as_str).collect::<Vec<_>>().join(", ");
        let instead = match (others.as_str(), place.index) {
            ("", Some(_)) => format!("write `{key}: NAME`, without override, to choose an option"),
            ("", None) => format!("write +{key}=NAME to add one"),
            (others, _) => format!("did you mean {others}?"),
        };
        place.refuse(format!("no defaults list chooses an option of {key}; {instead}"))
    }

    /// Checks that every removal removed a choice.
    fn check_removals(&self) -> Result<(), ConfigError> {
        match self.removals.iter().find(|(_, removal)| !removal.is_used) {
            None => Ok(()),
            Some((key, Removal { option, place, .. })) => {
                let chosen =
                    option.as_ref().map_or_else(|| format!("an option of {key}"), |it| format!("{it} of {key}"));
                Err(place.refuse(format!("no defaults list chooses {chosen}; leave it out")))
            }
        }
    }

    /// Returns the error of a group that does not exist.
    fn no_group(&self, group: &str, place: &Place) -> ConfigError {
        if let Some(field) = reserved(group).filter(|_| group == self.catalog.field.name) {
            return ConfigError::Reserved { origin: place.origin.clone(), key: group.to_owned(), field };
        }
        let own = group.rsplit_once('/').map(|(_, last)| last).filter(|last| self.catalog.group(last).is_some());
        let names: Vec<_> = self.catalog.groups.iter().map(|group| group.name).collect();
        let near =
            own.map_or_else(|| meant(nearest(group, &names).as_deref()), |own| format!(" (did you mean /{own}?)"));
        place.refuse(format!("there is no group {group}{near}: {}", self.catalog.listed()))
    }
}

/// Returns the error of an option that does not exist.
fn no_option(group: &OptionGroup, option: &str, place: &Place) -> ConfigError {
    let (known, nearest) = (group.names(), nearest(option, &group.names()));
    if place.index.is_none() {
        return ConfigError::UnknownName { field: group.name, name: option.to_owned(), nearest, known };
    }
    let (near, known) = (meant(nearest.as_deref()), known.join(", "));
    place.refuse(format!("{} has no option {option}{near}: use one of {known}", group.name))
}

/// Returns the error of a group of which two places choose an option. An override is to blame rather than a list.
fn twice(key: &str, place: &Place, other: &Place) -> ConfigError {
    let (wrong, other) = if other.index.is_none() { (other, place) } else { (place, other) };
    let chosen = format!("an option of {key} is chosen by `{}` in {}, too", other.text, other.origin);
    wrong.refuse(match wrong.index {
        None => format!("{chosen}; write {key}=NAME, without +, to replace that one"),
        Some(_) => format!("{chosen}; write `override {key}: NAME` at the end of a list to replace that one"),
    })
}
