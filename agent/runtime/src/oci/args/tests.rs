//! Command lines, read.

use super::*;

fn of(line: &str) -> Result<Parsed, String> {
    let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
    parse(&args).map_err(|usage| match usage {
        Usage::Help(_) => "help".to_owned(),
        Usage::Wrong { message, .. } => message,
    })
}

#[test]
fn command_lines() {
    let parsed = of("--root /r --log=/l --log-format json run -b /b --pid-file=/p x").unwrap();
    assert_eq!(
        parsed.global,
        Global {
            root: "/r".into(),
            log: Some("/l".into()),
            log_json: true
        }
    );
    let (bundle, pid_file) = ("/b".into(), Some("/p".into()));
    assert_eq!(
        parsed.command,
        Command::Run {
            id: "x".into(),
            bundle,
            pid_file,
            console: None,
            terminal: false,
            keep: false,
            detach: false,
            how: How::default()
        }
    );
    let kill = of("kill --all x KILL").unwrap().command;
    assert_eq!(
        kill,
        Command::Kill {
            id: "x".into(),
            signal: 9,
            all: true
        }
    );
    assert_eq!(
        of("delete --force x").unwrap().command,
        Command::Delete {
            id: "x".into(),
            force: true
        }
    );
    assert_eq!(
        of("list -f json").unwrap().command,
        Command::List { how: Listed::Json }
    );
    assert_eq!(
        of("create x").unwrap().global.root,
        PathBuf::from(crate::oci::ROOT)
    );
}

#[test]
fn refusals_name_the_option() {
    for (line, wanted) in [
        ("--systemd-cgroup create x", "--systemd-cgroup is refused"),
        ("exec x", "exec: no program is named"),
        ("exec -u a:b x p", "--user `a:b` is not UID[:GID]"),
        ("exec --l3-cache-schema /x x p", "--l3-cache-schema is refused"),
        ("update --memory much x", "--memory `much` is no number of bytes"),
        ("update x", "update: nothing is to be changed"),
        ("events --interval 0 x", "--interval `0` is no interval"),
        ("run --no-subreaper x", "--no-subreaper is refused"),
        ("create --nonsense x", "unknown option --nonsense of create"),
        ("checkpoint x", "unknown command `checkpoint`"),
        ("start", "start: 0 arguments, wanted 1..=1"),
        (
            "delete --force=yes x",
            "delete: a value for an option that takes none",
        ),
        ("create -b", "-b needs a value"),
        ("", "no command"),
        ("kill x NOPE", "`NOPE` is no signal"),
    ] {
        assert_eq!(of(line).unwrap_err(), wanted, "{line}");
    }
}

#[test]
fn signals() {
    for (word, number) in [
        ("9", 9),
        ("term", 15),
        ("SIGKILL", 9),
        ("RTMIN+1", 35),
        ("SIGRTMAX", 64),
        ("0", 0),
    ] {
        assert_eq!(signal(word), Some(number), "{word}");
    }
    for word in ["65", "-1", "", "SIG", "RTMIN+40"] {
        assert_eq!(signal(word), None, "{word}");
    }
}
