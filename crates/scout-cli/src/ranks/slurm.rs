//! What Slurm tells the tasks of a step in notations of its own.

use super::fnv::fnv;
use super::variables::{Variables, mistake, number, required};
use crate::failure::Mistake;

/// What all tasks of one step share and no other step in the cluster.
pub fn job_and_step(variables: Variables) -> String {
    let text = |name: &str| variables(name).unwrap_or_default();
    // The second is the older name of the same number.
    let step = variables("SLURM_STEP_ID").unwrap_or_else(|| text("SLURM_STEPID"));
    format!("{}.{step}", text("SLURM_JOB_ID"))
}

/// Jobs share nodes, so each step gets a port of its own; below those that the kernel deals out.
pub fn port(variables: Variables) -> u16 {
    20_000 + (fnv(&job_and_step(variables)) % 10_000) as u16
}

/// Number of tasks on this host, where all hosts have the same number.
pub fn local_size(variables: Variables, world_size: usize) -> Result<Option<usize>, Mistake> {
    const NODES: &str = "SLURM_STEP_NUM_NODES";
    if let Some(nodes) = variables(NODES)
        && number::<usize>(NODES, &nodes)? == 1
    {
        return Ok(Some(world_size));
    }
    Ok(variables("SLURM_STEP_TASKS_PER_NODE").and_then(|tasks| uniform(&tasks)))
}

/// `4` or `4(x2)`: as many on every node. `4(x2),3` is not uniform.
fn uniform(tasks_per_node: &str) -> Option<usize> {
    tasks_per_node.split('(').next()?.parse().ok().filter(|_| !tasks_per_node.contains(','))
}

/// The host of the step's first task.
pub fn first_host(variables: Variables) -> Result<String, Mistake> {
    const LIST: &str = "SLURM_STEP_NODELIST";
    let why = "the ranks run on several hosts, and MASTER_ADDR does not say where rank 0 runs either";
    let list = required(variables, LIST, why)?;
    first_of(&list).ok_or_else(|| mistake(format!("{LIST} is `{list}`, expected names like `node[03-05,07],gpu1`")))
}

/// `node[03-05,07],gpu1` begins with `node03`; a name may have several brackets.
fn first_of(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    while let Some(end) = rest.find(['[', ',']) {
        host.push_str(&rest[..end]);
        if rest[end..].starts_with(',') {
            return Some(host).filter(|host| !host.is_empty());
        }
        let (numbers, after) = rest[end + 1..].split_once(']')?;
        let first = numbers.split([',', '-']).next().filter(|first| !first.is_empty())?;
        host.push_str(first);
        rest = after;
    }
    host.push_str(rest);
    Some(host).filter(|host| !host.is_empty() && !host.contains(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, expected) in [
            ("node03", Some("node03")),
            ("node[03-05,07],gpu1", Some("node03")),
            ("gpu1,node[03-05]", Some("gpu1")),
            ("rack[2,4]node[001-128].cluster", Some("rack2node001.cluster")),
            ("n-1-[7]", Some("n-1-7")),
            ("", None),
            (",a", None),
            ("node[", None),
            ("node[03", None),
            ("node[]", None),
            ("node]", None),
        ] {
            assert_eq!(first_of(list).as_deref(), expected, "{list}");
        }
    }

    #[test]
    fn tasks_per_node_count_only_where_they_are_equal() {
        for (tasks, expected) in [("4", Some(4)), ("4(x2)", Some(4)), ("4(x2),3", None), ("4,3", None), ("x", None)] {
            assert_eq!(uniform(tasks), expected, "{tasks}");
        }
    }
}
