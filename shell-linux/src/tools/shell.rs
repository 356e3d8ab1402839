//! Words for a shell.

/// A word that every POSIX shell reads as these bytes.
//= spec/tools.md#TOOL-7
pub(super) fn quote(word: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./,=:+@%".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return word.to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in word {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::quote;

    //= spec/tools.md#TOOL-7
    #[test]
    fn a_shell_reads_what_was_quoted() {
        let words: [&[u8]; 9] = [
            b"/run/disk.sock",
            b"",
            b"a b",
            b"it's",
            b"$(touch pwned)`x`\\",
            b"two\nlines\t",
            b"~",
            b"*?[a]{b,c}!#;&|<>\"",
            b"\xff\xfe",
        ];
        for word in words {
            let script = [b"printf %s ".as_slice(), &quote(word)].concat();
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output();
            assert_eq!(output.unwrap().stdout, word);
        }
    }
}
