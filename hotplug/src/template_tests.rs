//! Substitutions, strictness, hostile values.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::device::Device;
use crate::event::Action;
use crate::rule::Match;

fn device(root: &Path) -> Device {
    let dir = root.join("devices/usb1/1-1/tty/ttyUSB12");
    fs::create_dir_all(&dir).unwrap();
    fs::write(root.join("devices/usb1/1-1/uevent"), "").unwrap();
    fs::write(root.join("devices/usb1/1-1/serial"), "A 1 \n").unwrap();
    fs::write(root.join("devices/usb1/1-1/evil"), "a\nLD_PRELOAD=/x\n").unwrap();
    std::os::unix::fs::symlink("/x/ftdi_sio", root.join("devices/usb1/1-1/driver")).unwrap();
    fs::write(dir.join("dev"), "188:12\n").unwrap();
    fs::write(
        dir.join("uevent"),
        "MAJOR=188\nMINOR=12\nDEVNAME=ttyUSB12\nID_SERIAL=x/../y z\nBAD=a\x1b[0m\n",
    )
    .unwrap();
    Device::from_sysfs(root, Path::new("/devices/usb1/1-1/tty/ttyUSB12")).unwrap()
}

fn render(text: &str) -> Result<String, RenderError> {
    let root = tempfile::tempdir().unwrap();
    let device = device(root.path());
    let view = View::new(&device);
    let matched = Match::parse(r#"ATTRS{serial}=="A*""#)
        .unwrap()
        .matches(&view, Action::Add)
        .unwrap();
    Template::parse(text).unwrap().render(&view, &matched)
}

#[test]
fn table() {
    for (text, want) in [
        ("plain", "plain"),
        ("", ""),
        ("$kernel %k", "ttyUSB12 ttyUSB12"),
        ("$number%n", "1212"),
        ("$devnode %N", "/dev/ttyUSB12 /dev/ttyUSB12"),
        (
            "$devpath|%p",
            "/devices/usb1/1-1/tty/ttyUSB12|/devices/usb1/1-1/tty/ttyUSB12",
        ),
        ("$major:%m", "188:12"),
        ("%M:$minor", "188:12"),
        ("$env{ID_SERIAL}%E{MAJOR}", "x/../y z188"),
        ("$attr{dev}", "188:12"),
        ("<%s{serial}>", "<A 1>"),
        ("$id %b $driver", "1-1 1-1 ftdi_sio"),
        ("$name $root %r", "ttyUSB12 /dev /dev"),
        ("$$5 100%%", "$5 100%"),
        ("größe $kernel", "größe ttyUSB12"),
    ] {
        assert_eq!(render(text).as_deref(), Ok(want), "{text}");
    }
}

#[test]
fn the_unknown_is_an_error_that_lists_what_there_is() {
    let error = render("$env{ID_SERAIL}").unwrap_err().to_string();
    assert!(
        error.contains("ID_SERAIL") && error.contains("ID_SERIAL MAJOR MINOR"),
        "{error}"
    );
    let error = render("$attr{nope}").unwrap_err().to_string();
    assert!(
        error.contains("nope") && error.contains("it has: dev uevent"),
        "{error}"
    );
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("devices/lo");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("uevent"), "INTERFACE=lo\nIFINDEX=1\n").unwrap();
    let lo = Device::from_sysfs(root.path(), Path::new("/devices/lo")).unwrap();
    for text in ["$devnode", "$number", "$major", "$minor", "$driver", "$id"] {
        let error = Template::parse(text)
            .unwrap()
            .render(&View::new(&lo), &Matched::default())
            .unwrap_err();
        assert!(
            matches!(error, RenderError::Nothing { what, .. } if what.starts_with(text)),
            "{error}"
        );
    }
}

#[test]
fn hostile_values_are_refused() {
    for text in ["$env{BAD}", "$attr{evil}"] {
        let error = render(text).unwrap_err();
        let shown = error.to_string();
        assert!(
            matches!(&error, RenderError::Unsafe { name, .. } if name == text),
            "{shown}"
        );
        assert!(
            !shown.contains(['\n', '\u{1b}']) && shown.contains("control character"),
            "{shown:?}"
        );
    }
    let error = render(&"$devpath".repeat(400)).unwrap_err();
    assert!(
        matches!(
            error,
            RenderError::Unsafe {
                source: safe::Unsafe::TooLong { .. },
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn table_of_errors() {
    for (text, column, message, hint) in [
        (
            "a $kernl",
            3,
            "unknown substitution $kernl",
            "did you mean $kernel?",
        ),
        ("$", 1, "stands alone", "write $$"),
        ("100%", 4, "stands alone", "write %%"),
        ("%q", 1, "unknown substitution %q", "%%"),
        ("$env", 1, "needs a name", "$env{NAME}"),
        ("$env{}", 1, "needs a name", ""),
        ("$env{A", 1, "needs a name", ""),
        ("%s", 1, "needs a name", "$attr{NAME}"),
        ("$result", 1, "not supported", ""),
        ("%c", 1, "not supported", ""),
        ("$parent", 1, "not supported", ""),
        ("ä\n", 2, "control character", ""),
    ] {
        let error = Template::parse(text).expect_err(text);
        assert_eq!(error.column, column, "{text:?}: {error}");
        assert!(error.message.contains(message), "{text:?}: {error}");
        assert!(
            error.hint.as_deref().unwrap_or("").contains(hint),
            "{text:?}: {error}"
        );
    }
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,60}|[$%{}a-zA-Z]{0,60}|(\\$(kernel|env\\{A\\}|attr\\{b/c\\})|%[kn%]|[a-z$]){0,12}") {
        if let Ok(template) = Template::parse(&text) {
            prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
        }
    }
}
