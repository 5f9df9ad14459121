//! Shell globs as udev's rules use them: `fnmatch(3)` with no flags, on bytes.
//!
//! `*` matches anything (a `/` too), `?` one byte, `[abc]`, `[a-z]`, `[!a]`, `[^a]`, `[[:digit:]]` one byte of
//! a set, `\x` the byte x. A `[` that is never closed stands for itself. Invariants: compiling cannot fail;
//! matching takes at most pattern × text steps and no memory. The tests hold it against the C library's own
//! function.

/// A compiled glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    One,
    Any,
    Set(Box<[u64; 4]>),
    /// A backslash with nothing behind it: matches nothing.
    Never,
}

/// Does udev take this text for a glob (else it is compared as it stands)?
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

impl Glob {
    /// Compiles a pattern; `fold` makes ASCII letters of both cases equal.
    pub fn new(pattern: &str, fold: bool) -> Glob {
        let p = pattern.as_bytes();
        let mut tokens = Vec::with_capacity(p.len());
        let mut i = 0;
        while i < p.len() {
            let (token, next) = match p[i] {
                b'*' => (Token::Any, i + 1),
                b'?' => (Token::One, i + 1),
                b'\\' if i + 1 == p.len() => (Token::Never, i + 1),
                b'\\' => (byte(p[i + 1], fold), i + 2),
                b'[' => match set(p, i + 1, fold) {
                    Some((set, next)) => (Token::Set(Box::new(set)), next),
                    None => (Token::Byte(b'['), i + 1),
                },
                b => (byte(b, fold), i + 1),
            };
            if !(token == Token::Any && tokens.last() == Some(&Token::Any)) {
                tokens.push(token);
            }
            i = next;
        }
        Glob { tokens }
    }

    /// Does the whole text match?
    pub fn matches(&self, text: &str) -> bool {
        let t = text.as_bytes();
        let (mut i, mut j) = (0, 0);
        // Where to go on when it fails: behind the last `*`, one byte further in the text.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match self.tokens.get(i) {
                Some(Token::Any) => {
                    i += 1;
                    retry = Some((i, j));
                    continue;
                }
                Some(token) if j < t.len() && token.takes(t[j]) => {
                    i += 1;
                    j += 1;
                    continue;
                }
                None if j == t.len() => return true,
                _ => {}
            }
            match retry {
                Some((ti, tj)) if tj < t.len() => {
                    retry = Some((ti, tj + 1));
                    (i, j) = (ti, tj + 1);
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    fn takes(&self, b: u8) -> bool {
        match self {
            Token::Byte(x) => *x == b,
            Token::One => true,
            Token::Set(set) => has(set, b),
            Token::Any | Token::Never => false,
        }
    }
}

fn byte(b: u8, fold: bool) -> Token {
    if fold && b.is_ascii_alphabetic() {
        let mut set = [0; 4];
        add(&mut set, b.to_ascii_lowercase());
        add(&mut set, b.to_ascii_uppercase());
        return Token::Set(Box::new(set));
    }
    Token::Byte(b)
}

fn has(set: &[u64; 4], b: u8) -> bool {
    set[usize::from(b >> 6)] >> (b & 63) & 1 == 1
}

fn add(set: &mut [u64; 4], b: u8) {
    set[usize::from(b >> 6)] |= 1 << (b & 63);
}

/// Parses a bracket expression whose `[` is before `at`; `None` where it is never closed.
fn set(p: &[u8], at: usize, fold: bool) -> Option<([u64; 4], usize)> {
    let mut i = at;
    let negated = matches!(p.get(i), Some(b'!' | b'^'));
    i += usize::from(negated);
    let mut set = [0u64; 4];
    let first = i;
    loop {
        let b = *p.get(i)?;
        if b == b']' && i > first {
            i += 1;
            break;
        }
        if b == b'['
            && p.get(i + 1) == Some(&b':')
            && let Some((class, next)) = class(p, i + 2)
        {
            (0..=127u8).filter(|b| class(*b)).for_each(|b| add(&mut set, b));
            i = next;
            continue;
        }
        let (low, next) = member(p, i)?;
        i = next;
        // A `-` that is neither first nor last makes a range.
        let high = match (p.get(i), p.get(i + 1)) {
            (Some(b'-'), Some(end)) if *end != b']' => {
                let (high, next) = member(p, i + 1)?;
                i = next;
                high
            }
            _ => low,
        };
        (low..=high).for_each(|b| add(&mut set, b));
    }
    if fold {
        for b in (b'a'..=b'z')
            .filter(|b| has(&set, *b) || has(&set, b.to_ascii_uppercase()))
            .collect::<Vec<_>>()
        {
            add(&mut set, b);
            add(&mut set, b.to_ascii_uppercase());
        }
    }
    if negated {
        set.iter_mut().for_each(|word| *word = !*word);
    }
    Some((set, i))
}

fn member(p: &[u8], i: usize) -> Option<(u8, usize)> {
    match *p.get(i)? {
        b'\\' => Some((*p.get(i + 1)?, i + 2)),
        b => Some((b, i + 1)),
    }
}

type Class = fn(u8) -> bool;

fn class(p: &[u8], at: usize) -> Option<(Class, usize)> {
    let end = at + p[at..].windows(2).position(|w| w == b":]")?;
    let class: Class = match &p[at..end] {
        b"alnum" => |b| b.is_ascii_alphanumeric(),
        b"alpha" => |b| b.is_ascii_alphabetic(),
        b"blank" => |b| b == b' ' || b == b'\t',
        b"cntrl" => |b| b.is_ascii_control(),
        b"digit" => |b| b.is_ascii_digit(),
        b"graph" => |b| b.is_ascii_graphic(),
        b"lower" => |b| b.is_ascii_lowercase(),
        b"print" => |b| b.is_ascii_graphic() || b == b' ',
        b"punct" => |b| b.is_ascii_punctuation(),
        b"space" => |b| b.is_ascii_whitespace() || b == 0x0b,
        b"upper" => |b| b.is_ascii_uppercase(),
        b"xdigit" => |b| b.is_ascii_hexdigit(),
        _ => return None,
    };
    Some((class, end + 2))
}

#[cfg(test)]
#[path = "glob_tests.rs"]
mod tests;
