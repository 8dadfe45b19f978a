//! Parquet, as Hugging Face's data sets come.

use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};

use super::Each;
use crate::third_party::guarded;
use crate::{DatasetError, Place, Result};

/// Reads every row.
pub(super) fn read(file: &Arc<Path>, each: &mut Each<'_>) -> Result<()> {
    let broken = |what: String| DatasetError::Parquet { path: file.to_path_buf(), what };
    let bytes = fs_err::File::open(&**file)?.into_file();
    let reader = call(|| SerializedFileReader::new(bytes)).map_err(broken)?;
    let mut rows = call(|| reader.get_row_iter(None)).map_err(broken)?;
    for number in 1.. {
        let place = Place { file: Arc::clone(file), number, is_line: false };
        let row = call(|| rows.next().transpose())
            .map_err(|what| DatasetError::row(&place, format!("cannot be read: {what}")))?;
        let Some(row) = row else { break };
        each(place, object(&row))?;
    }
    Ok(())
}

/// What the reader returns; a panic in it, which a broken file may cause, is an error too.
fn call<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match guarded(read) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(ParquetError::General(what))) => Err(what),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its parts contradict one another".into()),
    }
}

/// A row or struct without its nulls: every key of every struct is written, there or not.
fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter()
        .map(|(name, field)| (name.clone(), value(field)))
        .filter(|(_, value)| !value.is_null())
        .collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => json!(truth),
        Field::Byte(number) => json!(number),
        Field::Short(number) => json!(number),
        Field::Int(number) | Field::Date(number) | Field::TimeMillis(number) => json!(number),
        Field::Long(number)
        | Field::TimeMicros(number)
        | Field::TimestampMillis(number)
        | Field::TimestampMicros(number) => json!(number),
        Field::UByte(number) => json!(number),
        Field::UShort(number) => json!(number),
        Field::UInt(number) => json!(number),
        Field::ULong(number) => json!(number),
        Field::Float16(number) => json!(number.to_f32()),
        Field::Float(number) => json!(number),
        Field::Double(number) => json!(number),
        Field::Decimal(_) => json!(field.to_string()),
        Field::Str(text) => json!(text),
        // Some writers do not say that a column is text. What is not stays something to refuse.
        Field::Bytes(bytes) => match str::from_utf8(bytes.data()) {
            Ok(text) => json!(text),
            Err(_) => json!({"bytes": bytes.len()}),
        },
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            map.entries().iter().map(|(name, field)| (key(name), value(field))).collect()
        }
    }
}
