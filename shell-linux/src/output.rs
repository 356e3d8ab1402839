//! What commands say, on descriptors that may be closed or full.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use crate::log::escape;

/// The largest number of which every JSON reader knows all digits.
pub(crate) const EXACT_MAX: u64 = (1 << 53) - 1;

/// Prints to standard output. Who has stopped reading has read enough.
///
/// # Errors
/// When it cannot be written, as on a full disk.
//= spec/tools.md#TOOL-2
pub fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot print"),
    }
}

/// A path as it is shown to people.
#[must_use]
pub fn path(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

/// Prints one JSON value on a line.
///
/// # Errors
/// As for [`print()`].
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(format!("{}\n", json(value)?))
}

/// A JSON value whose numbers every reader understands.
///
/// # Errors
/// When it is no JSON.
//= spec/tools.md#TOOL-3
pub fn json(value: &impl Serialize) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(value)?;
    spell_out(&mut value);
    Ok(value)
}

/// Makes strings of integers that a floating-point number cannot hold.
fn spell_out(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let large = number.as_u64().is_some_and(|n| n > EXACT_MAX);
            if large || number.as_i64().is_some_and(|n| n.unsigned_abs() > EXACT_MAX) {
                *value = Value::String(number.to_string());
            }
        }
        Value::Array(all) => all.iter_mut().for_each(spell_out),
        Value::Object(all) => all.values_mut().for_each(spell_out),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Says on standard error what went wrong, in one line, whatever the log's filter says.
//= spec/tools.md#TOOL-4
pub fn complain(error: impl Display) {
    note(format!("sluice: {error:#}"));
}

/// Says something on standard error, in one line. If that is closed there is nobody to tell.
pub fn note(text: impl AsRef<str>) {
    let _ = io::stderr().write_all(format!("{}\n", escape(text.as_ref())).as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    //= spec/tools.md#TOOL-3
    #[test]
    fn numbers_beyond_53_bits_are_strings() {
        let most = (1_u64 << 53) - 1;
        let value =
            json!({ "a": [most, most + 1, 1.5], "b": { "c": i64::MIN, "d": -1, "e": u64::MAX } });
        let said = super::json(&value).unwrap();
        assert_eq!(
            said,
            json!({ "a": [most, "9007199254740992", 1.5],
                    "b": { "c": "-9223372036854775808", "d": -1, "e": "18446744073709551615" } })
        );
    }
}
