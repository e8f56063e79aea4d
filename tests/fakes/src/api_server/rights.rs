//! Who may do what.

/// Somebody, by certificate or token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

impl User {
    pub(super) fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }
}

#[derive(Debug, Clone)]
struct Rule {
    user: String,
    verb: String,
    resource: String,
    allowed: bool,
}

/// The rules; the last that fits decides. Administrators (`system:masters`) may do everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Rights {
    nothing: bool,
    rules: Vec<Rule>,
}

impl Rights {
    /// Nobody may do anything but what rules allow.
    pub(super) fn nothing(&mut self) {
        self.nothing = true;
    }

    pub(super) fn rule(&mut self, user: &str, verb: &str, resource: &str, allowed: bool) {
        let [user, verb, resource] = [user, verb, resource].map(str::to_owned);
        self.rules.push(Rule { user, verb, resource, allowed });
    }

    /// `resource` is `pods` or `pods/log`.
    pub(super) fn allows(&self, user: &str, verb: &str, resource: &str) -> bool {
        let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
            Some(prefix) => text.starts_with(prefix),
            None => pattern == text,
        };
        let rule = self
            .rules
            .iter()
            .rfind(|rule| fits(&rule.user, user) && fits(&rule.verb, verb) && fits(&rule.resource, resource));
        rule.map_or(!self.nothing, |rule| rule.allowed)
    }
}
