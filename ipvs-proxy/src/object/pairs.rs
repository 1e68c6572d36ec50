//! Numbers by name, as annotations of this program have them: `here=4,elsewhere=1`.
//!
//! Invariant: each name stands at most once, and no number is 0.

use std::str::FromStr;

use cluster::Problem;

use super::field::Field;

/// What the annotation `name` of `service` says, whose text has the `form`.
///
/// # Errors
/// Says what is accepted in place of a text that cannot be read.
pub(super) fn annotation<T: FromStr>(
    service: &Field<'_>,
    name: &'static str,
    form: &'static str,
) -> Result<Option<T>, Problem> {
    let field = service.get("metadata").get("annotations").get(name);
    let read = |text: &str| text.parse().map_err(|_| field.problem(form));
    field.text()?.map(read).transpose()
}

/// The numbers of the `names` in `text`; `None` for a text of another form, another name or a number out of 1..=65535.
pub(super) fn read<const N: usize>(text: &str, names: [&str; N]) -> Option<[Option<u16>; N]> {
    let mut found = [None; N];
    for part in text.split(',') {
        let (name, number) = part.split_once('=')?;
        let (_, known) = names.iter().zip(&mut found).find(|(known, _)| **known == name.trim())?;
        let number = number.trim().parse().ok().filter(|number| *number > 0)?;
        if known.replace(number).is_some() {
            return None;
        }
    }
    Some(found)
}
