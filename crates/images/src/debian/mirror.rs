//! Where a build gets its packages: the Debian mirror that the host itself uses.
//!
//! apt's two formats are in sources.list(5). Where the host uses no Debian mirror, mmdebstrap is
//! told none and takes the one it knows.

use std::fs;
use std::path::Path;

use sistemo_host::program::Program;

/// Built where neither the user nor a Debian host says otherwise; the oldest release whose
/// systemd takes an SSH key from the kernel command line.
const DEFAULT_SUITE: &str = "bookworm";

/// The releases before that one: bullseye has systemd 247, and the credential
/// `ssh.authorized_keys.root` came with 252 (systemd.system-credentials(7)). Of the names that
/// move on, `oldoldstable` has meant bullseye since trixie came out.
const TOO_OLD: [&str; 18] = [
    "buzz",
    "rex",
    "bo",
    "hamm",
    "slink",
    "potato",
    "woody",
    "sarge",
    "etch",
    "lenny",
    "squeeze",
    "wheezy",
    "jessie",
    "stretch",
    "buster",
    "bullseye",
    "oldoldstable",
    "oldoldoldstable",
];

/// The keys that sign Debian's archive, at the same path on the host and, as apt depends on
/// them, in the guest.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Releases that neither updates nor security fixes are published apart from.
const ROLLING: [&str; 3] = ["sid", "unstable", "experimental"];

/// Debian as the host gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostSources {
    base: Option<String>,
    security: Option<String>,
}

/// One source of packages, in either format.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
    signed_by: Option<String>,
}

/// The release that is built where the user names none: the host's, where the host is a Debian
/// that is not too old.
pub(super) fn default_suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    suite_of(&release).unwrap_or_else(|| DEFAULT_SUITE.to_owned())
}

fn suite_of(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        os_release
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim_matches('"').to_owned())
    };
    if value("ID")? == "debian" {
        value("VERSION_CODENAME").filter(|suite| is_suite(suite) && !is_too_old(suite))
    } else {
        None
    }
}

/// Whether a text can be a release's name: it becomes part of sources.list.
pub(super) fn is_suite(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Whether guests of a release are known not to take the SSH key that lets their owner in.
pub(super) fn is_too_old(suite: &str) -> bool {
    // Such as `bullseye-backports`.
    let release = suite.split_once('-').map_or(suite, |(release, _)| release);
    TOO_OLD.contains(&release)
}

impl HostSources {
    /// Reads the host's own sources; what cannot be read is as if it were not there.
    pub(super) fn read() -> HostSources {
        let mut sources = Vec::new();
        let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
        let others = fs::read_dir("/etc/apt/sources.list.d");
        files.extend(others.into_iter().flatten().flatten().map(|e| e.path()));
        files.sort();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => sources.extend(one_line_sources(&text)),
                Some("sources") => sources.extend(deb822_sources(&text)),
                _ => {}
            }
        }
        HostSources::from_sources(&sources, &|path| fs::read_to_string(path).ok())
    }

    fn from_sources(sources: &[Source], read: &dyn Fn(&str) -> Option<String>) -> HostSources {
        let mirror = |wanted: fn(&str) -> bool| {
            sources
                .iter()
                .filter(|source| wanted(&source.suite))
                .filter(|source| source.components.iter().any(|name| name == "main"))
                .filter_map(|source| Some((source, reachable(&source.uri, read)?)))
                .find(|(source, uri)| is_debian(source, uri))
                .map(|(_, uri)| uri)
        };
        HostSources {
            base: mirror(|suite| !suite.contains(['-', '/'])),
            security: mirror(|suite| suite.ends_with("-security") || suite.ends_with("/updates")),
        }
    }

    /// The lines of the guest's sources.list; none where the host has no Debian mirror.
    pub(super) fn lines(&self, suite: &str) -> Vec<String> {
        let Some(base) = &self.base else {
            return Vec::new();
        };
        let option = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let mut lines = vec![format!("deb {option}{base} {suite} main")];
        if !ROLLING.contains(&suite) {
            lines.push(format!("deb {option}{base} {suite}-updates main"));
            if let Some(security) = &self.security {
                lines.push(format!("deb {option}{security} {suite}-security main"));
            }
        }
        lines
    }
}

/// The address that a guest can use too: not a file or a disc of the host's. Cloud images of
/// Debian name a file that lists mirrors.
fn reachable(uri: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    if let Some(list) = uri.strip_prefix("mirror+file:") {
        let path = format!("/{}", list.trim_start_matches('/'));
        return read(&path)?
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .find(|uri| is_http(uri))
            .map(str::to_owned);
    }
    is_http(uri).then(|| uri.to_owned())
}

fn is_http(uri: &str) -> bool {
    let http = uri.starts_with("http://") || uri.starts_with("https://");
    http && !uri.contains(['[', ']', '"', '\\']) && !uri.contains(char::is_control)
}

/// Whether a source is Debian itself and not somebody's packages for it: it is signed with
/// Debian's keys, or has Debian's own path.
fn is_debian(source: &Source, uri: &str) -> bool {
    match &source.signed_by {
        Some(keys) => keys
            .rsplit('/')
            .next()
            .is_some_and(|file| file.starts_with("debian-archive-")),
        None => uri
            .split('/')
            .skip(3)
            .any(|part| part == "debian" || part == "debian-security"),
    }
}

fn one_line_sources(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line_source).collect()
}

fn one_line_source(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let mut rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(inside) = rest.strip_prefix('[') {
        let (options, behind) = inside.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = behind;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uri: words.next()?,
        suite: words.next()?,
        components: words.collect(),
        signed_by,
    })
}

fn deb822_sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let field = |wanted: &str| {
        fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    };
    let words = |wanted: &str| field(wanted).unwrap_or_default().split_whitespace();
    let disabled = field("enabled").is_some_and(|value| matches!(value, "no" | "false" | "0"));
    if disabled || !words("types").any(|kind| kind == "deb") {
        return Vec::new();
    }
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(Source {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
                components: words("components").map(str::to_owned).collect(),
                signed_by: field("signed-by").map(str::to_owned),
            });
        }
    }
    sources
}

/// The environment that makes mmdebstrap use the host's apt proxy. Written into apt's own
/// settings instead, it would stay in the guest, where the proxy may not be reachable.
pub(super) fn proxies() -> Vec<(&'static str, String)> {
    [
        ("http_proxy", "Acquire::http::Proxy"),
        ("https_proxy", "Acquire::https::Proxy"),
    ]
    .into_iter()
    .filter_map(|(variable, setting)| {
        let dump = Program::find("apt-config").ok()?;
        let answer = dump.args(["dump", setting]).run().ok()?;
        Some((variable, proxy_of(&answer.text(), setting)?))
    })
    .collect()
}

fn proxy_of(dump: &str, setting: &str) -> Option<String> {
    dump.lines()
        .find_map(|line| line.strip_prefix(setting)?.strip_prefix(" \""))
        .and_then(|rest| rest.strip_suffix("\";"))
        .filter(|value| value.contains("://"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(sources: &[Source]) -> HostSources {
        HostSources::from_sources(sources, &|path| {
            (path == "/etc/apt/mirrors/debian.list")
                .then(|| "https://cloud.example/debian\tpriority:1\n".to_owned())
        })
    }

    fn found(base: &str, security: Option<&str>) -> HostSources {
        HostSources {
            base: Some(base.to_owned()),
            security: security.map(str::to_owned),
        }
    }

    #[test]
    fn a_one_line_sources_list_names_the_mirror() {
        let text = "\
# deb http://old.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/shop.gpg] https://shop.example/debian bookworm main
deb [ arch=amd64 ] http://mirror.example/debian bookworm main contrib # ours
deb http://mirror.example/debian bookworm-updates main
deb http://mirror.example/debian-security bookworm-security main
";
        assert_eq!(
            host(&one_line_sources(text)),
            found(
                "http://mirror.example/debian",
                Some("http://mirror.example/debian-security")
            )
        );
    }

    #[test]
    fn deb822_sources_name_the_mirror() {
        let text = "\
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

# a comment
Types: deb deb-src
URIs: http://mirror.example/linux
Suites: trixie
 trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security/
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
        assert_eq!(
            host(&deb822_sources(text)),
            found(
                "http://mirror.example/linux",
                Some("http://mirror.example/security/")
            )
        );
    }

    #[test]
    fn a_list_of_mirrors_in_a_file_is_read() {
        let text = "deb mirror+file:///etc/apt/mirrors/debian.list trixie main";
        assert_eq!(
            host(&one_line_sources(text)),
            found("https://cloud.example/debian", None)
        );
    }

    #[test]
    fn other_peoples_packages_and_local_media_are_no_mirror() {
        let text = "\
deb https://packages.example/apt bookworm main
deb https://packages.example/debian bookworm stable
deb cdrom:[Debian]/ bookworm main
deb file:/srv/debian bookworm main
";
        assert_eq!(host(&one_line_sources(text)), HostSources::default());
        assert!(HostSources::default().lines("bookworm").is_empty());
    }

    #[test]
    fn a_release_comes_with_its_updates_and_security_fixes_unless_it_rolls() {
        let sources = found("http://m.example/debian", Some("http://m.example/security"));
        let suites = |suite: &str| -> Vec<String> {
            sources
                .lines(suite)
                .iter()
                .filter_map(|line| line.rsplit(' ').nth(1).map(str::to_owned))
                .collect()
        };
        assert_eq!(
            suites("trixie"),
            ["trixie", "trixie-updates", "trixie-security"]
        );
        assert_eq!(suites("sid"), ["sid"]);
    }

    #[test]
    fn the_default_release_is_a_debian_hosts_own() {
        let debian = "ID=debian\nVERSION_CODENAME=trixie\n";
        assert_eq!(suite_of(debian), Some("trixie".to_owned()));
        assert_eq!(suite_of("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(suite_of("ID=debian\nVERSION_CODENAME=bullseye\n"), None);
        assert!(is_suite("bookworm") && !is_suite("-x") && !is_suite("a b") && !is_suite(""));
    }

    #[test]
    fn a_release_before_the_default_is_too_old() {
        for suite in ["stretch", "buster", "bullseye", "bullseye-backports"] {
            assert!(is_too_old(suite), "{suite}");
        }
        for suite in [DEFAULT_SUITE, "trixie", "oldstable", "stable", "sid"] {
            assert!(!is_too_old(suite), "{suite}");
        }
    }

    #[test]
    fn a_proxy_is_taken_from_apts_settings() {
        let setting = "Acquire::http::Proxy";
        let of = |value: &str| proxy_of(&format!("{setting} \"{value}\";\n"), setting);
        assert_eq!(
            of("http://proxy.example:3142"),
            Some("http://proxy.example:3142".to_owned())
        );
        assert_eq!(of("DIRECT"), None);
        assert_eq!(proxy_of("", setting), None);
    }
}
