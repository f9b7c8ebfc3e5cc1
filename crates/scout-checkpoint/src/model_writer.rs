//! Writes a model folder in the layout of Hugging Face, block by block: no tensor is ever whole in memory, and the
//! index comes last, so an unfinished folder is not a model. Does not know where the values come from.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use scout_core::{ByteCount, DType, ParamSpec};
use serde_json::{Map, Value, json};

use crate::atomic_file::{create_folder, write_whole};
use crate::error::{CheckpointError, Result};
use crate::model_folder::{INDEX_FILE, SINGLE_FILE};
use crate::safetensors::TensorWriter;

/// Elements asked for at a time: 4 MiB of f32.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// Gives the elements of one range of one parameter, in row-major order.
pub type Fill<'a, E> = dyn FnMut(&ParamSpec, Range<usize>, &mut [f32]) -> Result<(), E> + 'a;

/// As [`Fill`], of several parameters at a time.
pub type AnyOrder<'a> = dyn Fn(&ParamSpec, Range<usize>, &mut [f32]) -> Result<()> + Sync + 'a;

/// Writes a model of one element type, whose values may be asked for in any order: several files at a time, by as many
/// threads as there are cores. Else as [`write_typed_model`].
pub fn write_model(
    folder: &Path,
    tensors: &[ParamSpec],
    dtype: DType,
    max_shard_bytes: ByteCount,
    fill: &AnyOrder,
) -> Result<()> {
    let tensors: Vec<_> = tensors.iter().map(|param| (param.clone(), dtype)).collect();
    let files = begin(folder, &tensors, max_shard_bytes)?;
    let next = AtomicUsize::new(0);
    let write_some = || -> Result<()> {
        while let Some((name, shard)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut ask = |param: &ParamSpec, range: Range<usize>, out: &mut [f32]| fill(param, range, out);
            if let Err(error) = write_shard(&folder.join(name), shard, &mut ask) {
                next.store(files.len(), Ordering::Relaxed); // the others begin no more
                return Err(error);
            }
        }
        Ok(())
    };
    let num_threads = thread::available_parallelism().map_or(1, |cores| cores.get()).min(files.len());
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(write_some)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("writing does not panic"))
    })?;
    end(folder, &tensors, &files)
}

/// Writes `tensors`, each in its element type, as one file, or as shards of at most `max_shard_bytes` filled greedily in
/// the given order; a tensor above the limit gets a shard of its own.
///
/// Within a file tensors are written, and `fill` is asked for them, in the order of their names; [`written_order`] tells
/// the whole order beforehand. Fails when the folder already holds a model: overwriting one half-way would leave neither.
pub fn write_typed_model<E: From<CheckpointError>>(
    folder: &Path,
    tensors: &[(ParamSpec, DType)],
    max_shard_bytes: ByteCount,
    fill: &mut Fill<'_, E>,
) -> Result<(), E> {
    let files = begin(folder, tensors, max_shard_bytes)?;
    files.iter().try_for_each(|(name, shard)| write_shard(&folder.join(name), shard, fill))?;
    Ok(end(folder, tensors, &files)?)
}

/// The tensors of one file.
type Shard<'a> = Vec<&'a (ParamSpec, DType)>;

/// Makes the folder and names its files.
fn begin<'a>(
    folder: &Path,
    tensors: &'a [(ParamSpec, DType)],
    max_shard_bytes: ByteCount,
) -> Result<Vec<(String, Shard<'a>)>> {
    create_folder(folder)?;
    for file in [INDEX_FILE, SINGLE_FILE] {
        if fs::symlink_metadata(folder.join(file)).is_ok() {
            return Err(CheckpointError::AlreadyThere { path: folder.to_path_buf(), file });
        }
    }
    let shards = plan_shards(tensors, max_shard_bytes);
    let count = shards.len();
    let name = |index: usize| match count {
        1 => SINGLE_FILE.to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    Ok(shards.into_iter().enumerate().map(|(index, shard)| (name(index), shard)).collect())
}

/// Makes a model of what is written: the index of several files.
fn end(folder: &Path, tensors: &[(ParamSpec, DType)], files: &[(String, Shard)]) -> Result<()> {
    if files.len() == 1 {
        return Ok(());
    }
    let of_file = |(name, shard): &(String, Shard)| {
        shard.iter().map(|(param, _)| (param.name.clone(), name.clone())).collect::<Vec<_>>()
    };
    write_index(folder, tensors, files.iter().flat_map(of_file).collect())
}

/// The order in which [`write_typed_model`] asks for the tensors: known to ranks that give values and write nothing.
pub fn written_order(tensors: &[(ParamSpec, DType)], max_shard_bytes: ByteCount) -> impl Iterator<Item = &ParamSpec> {
    plan_shards(tensors, max_shard_bytes).into_iter().flatten().map(|(param, _)| param)
}

/// Removes the weights of a model, its index first, so that a folder half emptied is not a model. Leaves everything else.
pub fn remove_model(folder: &Path) -> Result<()> {
    let failed = |cause| CheckpointError::Read { path: folder.to_path_buf(), cause };
    let mut files = vec![INDEX_FILE.to_string(), SINGLE_FILE.to_string()];
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors") {
            files.push(name);
        }
    }
    for path in files.iter().map(|file| folder.join(file)) {
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(CheckpointError::Create { path, cause });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The parameters of each shard, in the order of their names.
fn plan_shards(tensors: &[(ParamSpec, DType)], max_shard_bytes: ByteCount) -> Vec<Shard<'_>> {
    let mut shards = Vec::new();
    let mut open = Vec::new();
    let mut open_bytes = ByteCount(0);
    for tensor in tensors {
        let bytes = num_bytes(tensor);
        if bytes > max_shard_bytes {
            shards.push(vec![tensor]);
            continue;
        }
        if open_bytes + bytes > max_shard_bytes {
            shards.push(std::mem::take(&mut open));
            open_bytes = ByteCount(0);
        }
        open.push(tensor);
        open_bytes += bytes;
    }
    if !open.is_empty() || shards.is_empty() {
        shards.push(open);
    }
    for shard in &mut shards {
        shard.sort_by(|left, right| left.0.name.cmp(&right.0.name));
    }
    shards
}

fn num_bytes((param, dtype): &(ParamSpec, DType)) -> ByteCount {
    dtype.size() * param.num_elements() as u64
}

fn write_shard<E: From<CheckpointError>>(
    path: &Path,
    shard: &[&(ParamSpec, DType)],
    fill: &mut Fill<'_, E>,
) -> Result<(), E> {
    let mut writer = TensorWriter::create(path, shard.iter().map(|&tensor| tensor.clone()).collect())?;
    let longest = shard.iter().map(|(param, _)| param.num_elements()).max().unwrap_or(0);
    let mut block = vec![0.0; longest.min(BLOCK_ELEMENTS)];
    for (param, _) in shard {
        let num_elements = param.num_elements();
        for begin in (0..num_elements).step_by(BLOCK_ELEMENTS) {
            let range = begin..num_elements.min(begin + BLOCK_ELEMENTS);
            let values = &mut block[..range.len()];
            fill(param, range, values)?;
            writer.write_f32(&param.name, values)?;
        }
    }
    Ok(writer.finish()?)
}

fn write_index(folder: &Path, tensors: &[(ParamSpec, DType)], mut weight_map: Vec<(String, String)>) -> Result<()> {
    weight_map.sort();
    let weight_map: Map<String, Value> = weight_map.into_iter().map(|(name, file)| (name, Value::from(file))).collect();
    let num_elements: usize = tensors.iter().map(|(param, _)| param.num_elements()).sum();
    let total_size = tensors.iter().map(num_bytes).sum::<ByteCount>().0;
    let index = json!({
        "metadata": { "total_parameters": num_elements, "total_size": total_size },
        "weight_map": weight_map,
    });
    // The same bytes as `save_pretrained`: two spaces, and a newline at the end.
    let text = serde_json::to_string_pretty(&index).expect("keys are strings and numbers are finite") + "\n";
    write_whole(&folder.join(INDEX_FILE), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use scout_core::Shape;

    use super::*;

    fn sizes(tensors: &[usize], max: u64) -> Vec<Vec<usize>> {
        let param = |(i, &size)| (ParamSpec::new(format!("{i:03}"), [size]), DType::F32);
        let params: Vec<_> = tensors.iter().enumerate().map(param).collect();
        let shards = plan_shards(&params, ByteCount(max * 4));
        shards.iter().map(|shard| shard.iter().map(|(param, _)| param.num_elements()).collect()).collect()
    }

    #[test]
    fn shards_are_filled_greedily_in_the_given_order() {
        assert_eq!(sizes(&[6, 6, 2, 6, 2, 2], 10), [vec![6], vec![6, 2], vec![6, 2, 2]]);
        assert_eq!(sizes(&[5, 5], 10), [vec![5, 5]]);
        // A tensor above the limit stands alone and does not close the open shard.
        assert_eq!(sizes(&[3, 12, 2], 10), [vec![12], vec![3, 2]]);
        assert_eq!(sizes(&[12], 10), [vec![12]]);
        assert_eq!(sizes(&[], 10), [Vec::<usize>::new()]);
    }

    #[test]
    fn values_are_asked_for_in_the_written_order_and_each_tensor_keeps_its_own_type() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |name: &str, len: usize, dtype| (ParamSpec::new(name, [len]), dtype);
        let tensors = [
            tensor("c", 3, DType::F32),
            tensor("a", 5, DType::BF16),
            tensor("d", 4, DType::F16),
            tensor("b", 2, DType::F32),
        ];
        // Room for the first two and for the last two.
        let max = ByteCount(24);
        let expected: Vec<String> = written_order(&tensors, max).map(|param| param.name.clone()).collect();
        assert_eq!(expected, ["a", "c", "b", "d"]);
        for _ in 0..2 {
            let mut asked = Vec::new();
            write_typed_model(
                folder.path(),
                &tensors,
                max,
                &mut |param: &ParamSpec, range: Range<usize>, out: &mut [f32]| {
                    asked.push(param.name.clone());
                    out.iter_mut().zip(range).for_each(|(out, at)| *out = at as f32);
                    Ok::<(), CheckpointError>(())
                },
            )
            .unwrap();
            assert_eq!(asked, expected);
            let files = crate::model_folder::ModelFolder::open(folder.path()).unwrap();
            for (param, dtype) in &tensors {
                assert_eq!(files.element_type(&param.name).unwrap().dtype(), Some(*dtype), "{}", param.name);
                let mut values = vec![0.0; param.num_elements()];
                files.read_f32(&param.name, 0..values.len(), &mut values).unwrap();
                assert_eq!(values, (0..values.len()).map(|at| at as f32).collect::<Vec<_>>());
            }
            // What is removed leaves room for another; what else lies there stays.
            fs::write(folder.path().join("config.json"), "{}").unwrap();
            remove_model(folder.path()).unwrap();
            let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["config.json"]);
        }
    }

    #[test]
    fn scout_fills_fifty_files_of_five_gigabytes() {
        // Vision tower and projector stand for all their tensors: only their sum decides where the first file ends.
        let mut params = vec![ParamSpec::new("vision", [850_960_896]), ParamSpec::new("projector", [5120, 4096])];
        params.push(ParamSpec::new("embed", [202_048, 5120]));
        for layer in 0..48 {
            let mut push = |name: &str, shape: Shape| params.push(ParamSpec::new(format!("{layer:02}.{name}"), shape));
            push("q", [5120, 5120].into());
            push("k", [1024, 5120].into());
            push("v", [1024, 5120].into());
            push("o", [5120, 5120].into());
            push("gate_up", [16, 5120, 16_384].into());
            push("down", [16, 8192, 5120].into());
            push("router", [16, 5120].into());
            (0..3).for_each(|part| push(&format!("shared{part}"), [8192, 5120].into()));
            (0..2).for_each(|part| push(&format!("norm{part}"), [5120].into()));
        }
        params.push(ParamSpec::new("norm", [5120]));
        params.push(ParamSpec::new("head", [202_048, 5120]));
        let params: Vec<_> = params.into_iter().map(|param| (param, DType::BF16)).collect();
        let shards = plan_shards(&params, ByteCount(5_000_000_000));
        assert_eq!(shards.len(), 50);
        let num_tensors: Vec<_> = [0, 1, 47, 48, 49].map(|index: usize| shards[index].len()).into();
        // In the middle: feed-forward and norms of one layer, attention of the next.
        assert_eq!(num_tensors, [7, 12, 12, 9, 1]);
    }
}
