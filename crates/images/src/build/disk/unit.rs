//! What an image runs, as a service of systemd: the same description makes a container and a machine.

use crate::oci::RunConfig;

/// The service. What it writes goes to the serial console too, and so to the pod's log.
pub(super) fn service(name: &str, config: &RunConfig) -> String {
    let args = config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten());
    let args: Vec<String> = args.map(|arg| quote(&arg.replace('$', "$$"))).collect();
    let mut text = format!(
        "[Unit]\nDescription={}\nWants=network-online.target\nAfter=network-online.target\n\n[Service]\nExecStart={}\n\
         Restart=always\nRestartSec=1\nStandardOutput=journal+console\nStandardError=journal+console\n",
        name.replace('%', "%%"),
        args.join(" ")
    );
    for entry in config.env.iter().flatten() {
        text.push_str(&format!("Environment={}\n", quote(entry)));
    }
    if let Some(dir) = config.working_dir.as_deref().filter(|dir| !dir.is_empty()) {
        text.push_str(&format!("WorkingDirectory=-{}\n", dir.replace('%', "%%")));
    }
    let (user, group) = match config.user.as_deref().unwrap_or_default().split_once(':') {
        Some((user, group)) => (user, group),
        None => (config.user.as_deref().unwrap_or_default(), ""),
    };
    for (key, value) in [("User", user), ("Group", group)].iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{key}={}\n", value.replace('%', "%%")));
    }
    text
}

/// A word as systemd reads it back.
fn quote(word: &str) -> String {
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through() {
        let strings = |words: &[&str]| Some(words.iter().map(|w| (*w).to_owned()).collect());
        let config = RunConfig {
            entrypoint: strings(&["/bin/app", "a b\"c\\"]),
            cmd: strings(&["$HOME 100%\nnext"]),
            env: strings(&["GREETING=hello you"]),
            user: Some("1000:100".to_owned()),
            working_dir: Some("/srv".to_owned()),
            ..RunConfig::default()
        };
        let text = service("web", &config);
        for line in [
            "ExecStart=\"/bin/app\" \"a b\\\"c\\\\\" \"$$HOME 100%%\\nnext\"",
            "Environment=\"GREETING=hello you\"",
            "WorkingDirectory=-/srv",
            "User=1000",
            "Group=100",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
