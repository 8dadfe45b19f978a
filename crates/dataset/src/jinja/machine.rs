//! Runs a template's statements.

use std::ops::Range;
use std::sync::Arc;

use super::budget::Budget;
use super::call::Given;
use super::fault::{Fault, fail};
use super::tree::{Block, Expression, For, Macro, Node, Parameter, Statement, Suffix, Target};
use super::value::{BoundMacro, List, ListKind, Loop, Value};

/// Blocks, expressions and macro calls within one another. It keeps the stack small enough for any thread.
const DEEPEST: usize = 150;

/// A template at work.
pub(super) struct Machine {
    pub(super) budget: Budget,
    /// Most bytes of the result.
    limit: usize,
    frames: Vec<Frame>,
    /// The frame that names are looked up in first.
    pub(super) current: usize,
    /// The result, and texts that are being captured.
    outputs: Vec<String>,
    /// The assistant's words, in characters of the result.
    marked: Vec<Range<usize>>,
    /// Bytes and characters of the result that are counted.
    counted: (usize, usize),
    depth: usize,
}

/// Variables, and the frame around them.
struct Frame {
    names: Vec<(Arc<str>, Value)>,
    parent: Option<usize>,
}

/// What follows a statement.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Machine {
    pub(super) fn new(variables: Vec<(Arc<str>, Value)>, budget: Budget, limit: usize) -> Self {
        Self {
            budget,
            limit,
            frames: vec![Frame { names: variables, parent: None }],
            current: 0,
            outputs: vec![String::new()],
            marked: Vec::new(),
            counted: (0, 0),
            depth: 0,
        }
    }

    /// Runs a whole template; returns its text and the assistant's words in it, in characters.
    pub(super) fn run(mut self, body: &Block) -> Result<(String, Vec<Range<usize>>), Fault> {
        self.block(body)?;
        Ok((self.outputs.pop().unwrap_or_default(), self.marked))
    }

    /// Does what lies one level deeper.
    pub(super) fn deeper<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if self.depth == DEEPEST {
            return fail(format!("the limit of {DEEPEST} levels of calls and blocks is reached"));
        }
        self.depth += 1;
        let found = inner(self);
        self.depth -= 1;
        found
    }

    pub(super) fn lookup(&mut self, name: &str) -> Result<Value, Fault> {
        let mut frame = Some(self.current);
        while let Some(at) = frame {
            let Some(Frame { names, parent }) = self.frames.get(at) else { break };
            self.budget.step(1 + names.len() / 16)?;
            if let Some((_, value)) = names.iter().rev().find(|(found, _)| &**found == name) {
                return Ok(value.clone());
            }
            frame = *parent;
        }
        Ok(match name {
            "range" | "dict" | "namespace" | "raise_exception" | "strftime_now" => {
                Value::Function(name.into())
            }
            _ => Value::Undefined,
        })
    }

    fn set(&mut self, name: &Arc<str>, value: Value) -> Result<(), Fault> {
        let Some(frame) = self.frames.get_mut(self.current) else { return Ok(()) };
        self.budget.step(1 + frame.names.len() / 16)?;
        match frame.names.iter_mut().find(|(found, _)| found == name) {
            Some((_, slot)) => *slot = value,
            None => frame.names.push((Arc::clone(name), value)),
        }
        Ok(())
    }

    /// Does something in a frame of its own, within `parent`.
    fn framed<T>(
        &mut self,
        parent: usize,
        names: Vec<(Arc<str>, Value)>,
        inner: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (before, height) = (self.current, self.frames.len());
        self.frames.push(Frame { names, parent: Some(parent.min(height - 1)) });
        self.current = height;
        let found = self.deeper(inner);
        self.frames.truncate(height);
        self.current = before;
        found
    }

    fn emit(&mut self, text: &str) -> Result<(), Fault> {
        self.budget.make(text.len())?;
        let limit = if self.outputs.len() == 1 { self.limit } else { usize::MAX };
        let Some(output) = self.outputs.last_mut() else { return Ok(()) };
        if output.len() + text.len() > limit {
            return fail(format!("the limit of {limit} bytes of output is reached"));
        }
        output.push_str(text);
        Ok(())
    }

    /// The text that something writes.
    pub(super) fn captured(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<Value, Fault> {
        let height = self.outputs.len();
        self.outputs.push(String::new());
        let result = inner(self);
        let text = self.outputs.split_off(height).swap_remove(0);
        result?;
        Ok(Value::Text(text.into()))
    }

    fn block(&mut self, body: &Block) -> Result<Flow, Fault> {
        for node in body {
            let flow = self.node(node).map_err(|fault| fault.on(node.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node) -> Result<Flow, Fault> {
        self.budget.step(1)?;
        match &node.statement {
            Statement::Text(text) => self.emit(text)?,
            Statement::Emit(value) => {
                let value = self.evaluate(value)?;
                let text = value.printed(&mut self.budget)?;
                self.emit(&text)?;
            }
            Statement::If { branches, otherwise } => return self.branch(branches, otherwise),
            Statement::For(found) => self.for_loop(found)?,
            Statement::Set { target, value } => {
                let value = self.evaluate(value)?;
                self.assign(target, value)?;
            }
            Statement::SetBlock { target, filters, body } => {
                let value = self.filtered(filters, body)?;
                self.assign(target, value)?;
            }
            Statement::Filter { filters, body } => {
                let value = self.filtered(filters, body)?;
                let text = value.printed(&mut self.budget)?;
                self.emit(&text)?;
            }
            Statement::With { names, body } => return self.with(names, body),
            Statement::Macro(code) => {
                let bound = BoundMacro { code: Arc::clone(code), frame: self.current };
                self.set(&code.name, Value::Macro(Arc::new(bound)))?;
            }
            Statement::Call { callee, caller } => self.call_block(callee, caller)?,
            Statement::Generation(body) => self.generation(body)?,
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn branch(
        &mut self,
        branches: &[(Expression, Block)],
        otherwise: &Block,
    ) -> Result<Flow, Fault> {
        for (condition, body) in branches {
            if self.evaluate(condition)?.is_true() {
                return self.deeper(|machine| machine.block(body));
            }
        }
        self.deeper(|machine| machine.block(otherwise))
    }

    fn with(&mut self, names: &[(Arc<str>, Expression)], body: &Block) -> Result<Flow, Fault> {
        let mut found = Vec::with_capacity(names.len());
        for (name, value) in names {
            found.push((Arc::clone(name), self.evaluate(value)?));
        }
        self.framed(self.current, found, |machine| machine.block(body))
    }

    fn for_loop(&mut self, found: &For) -> Result<(), Fault> {
        let over = self.evaluate(&found.over)?;
        let mut items = over.items(&mut self.budget)?;
        if let Some(only) = &found.only {
            items = self.those(found, &items, only)?;
        }
        if items.items.is_empty() {
            return self.deeper(|machine| machine.block(&found.otherwise)).map(|_| ());
        }
        self.framed(self.current, Vec::new(), |machine| {
            for index in 0..items.items.len() {
                if machine.turn(found, Loop { items: Arc::clone(&items), index })? == Flow::Break {
                    break;
                }
            }
            Ok(())
        })
    }

    fn turn(&mut self, found: &For, state: Loop) -> Result<Flow, Fault> {
        self.budget.step(1)?;
        let item = state.items.items[state.index].clone();
        if let Some(frame) = self.frames.get_mut(self.current) {
            frame.names.clear();
            frame.names.push(("loop".into(), Value::Loop(Arc::new(state))));
        }
        self.assign(&found.target, item)?;
        self.block(&found.body)
    }

    /// The items that a loop's condition lets through.
    fn those(
        &mut self,
        found: &For,
        items: &Arc<List>,
        only: &Expression,
    ) -> Result<Arc<List>, Fault> {
        let kept = self.framed(self.current, Vec::new(), |machine| {
            let mut kept = Vec::new();
            for item in &items.items {
                machine.assign(&found.target, item.clone())?;
                if machine.evaluate(only)?.is_true() {
                    kept.push(item.clone());
                }
            }
            Ok(kept)
        })?;
        Value::list(kept, ListKind::List, &mut self.budget)?.items(&mut self.budget)
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<(), Fault> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Attribute(owner, name) => match self.lookup(owner)? {
                Value::Namespace(namespace) => namespace.set(name, value, &mut self.budget),
                other => fail(format!(
                    "`{owner}` is {}; only a namespace's attributes can be set",
                    other.kind()
                )),
            },
            Target::Several(targets) => {
                let items = value.items(&mut self.budget)?;
                if items.items.len() != targets.len() {
                    let (found, wanted) = (items.items.len(), targets.len());
                    return fail(format!("{found} values for {wanted} names"));
                }
                for (target, item) in targets.iter().zip(&items.items) {
                    self.assign(target, item.clone())?;
                }
                Ok(())
            }
        }
    }

    /// What filters make of what a block writes.
    fn filtered(&mut self, filters: &[Suffix], body: &Block) -> Result<Value, Fault> {
        let text = self.captured(|machine| {
            machine.framed(machine.current, Vec::new(), |machine| machine.block(body)).map(|_| ())
        })?;
        self.suffixed(text, filters)
    }

    fn call_block(&mut self, callee: &Expression, caller: &Arc<Macro>) -> Result<(), Fault> {
        let Expression::Postfix(base, suffixes) = callee else {
            return fail("`call` needs a macro with its arguments");
        };
        let Some((Suffix::Call(arguments), before)) = suffixes.split_last() else {
            return fail("`call` needs a macro with its arguments");
        };
        let base = self.evaluate(base)?;
        let callee = self.suffixed(base, before)?;
        let mut given = self.given(arguments)?;
        let bound = BoundMacro { code: Arc::clone(caller), frame: self.current };
        given.named.push(("caller".into(), Value::Macro(Arc::new(bound))));
        let value = self.call(&callee, given)?;
        let text = value.printed(&mut self.budget)?;
        self.emit(&text)
    }

    /// The assistant's words. transformers counts where they begin in what was written so far, also
    /// where they are captured, and so does this.
    fn generation(&mut self, body: &Block) -> Result<(), Fault> {
        let text = self.captured(|machine| {
            machine.framed(machine.current, Vec::new(), |machine| machine.block(body)).map(|_| ())
        })?;
        let Value::Text(text) = text else { return Ok(()) };
        let (bytes, chars) = self.counted;
        let root = self.outputs.first().map_or("", String::as_str);
        let start = chars + root.get(bytes..).unwrap_or_default().chars().count();
        self.counted = (root.len(), start);
        self.budget.step(text.len() / 64)?;
        self.marked.push(start..start + text.chars().count());
        self.emit(&text)
    }

    /// What a macro writes.
    pub(super) fn call_macro(&mut self, bound: &BoundMacro, given: Given) -> Result<Value, Fault> {
        let Given { positional, named } = given;
        let parameters = &bound.code.parameters;
        if positional.len() > parameters.len() {
            return fail(format!("`{}` takes {} arguments", bound.code.name, parameters.len()));
        }
        let mut names = Vec::with_capacity(named.len() + parameters.len());
        for (name, value) in named {
            self.budget.step(1 + parameters.len() / 16)?;
            let known = parameters.iter().any(|parameter| parameter.name == name);
            if !known && &*name != "caller" {
                return fail(format!("`{}` takes no argument `{name}`", bound.code.name));
            }
            names.push((name, value));
        }
        for (value, parameter) in positional.into_iter().zip(parameters) {
            names.push((Arc::clone(&parameter.name), value));
        }
        self.captured(|machine| {
            machine.framed(bound.frame, names, |machine| {
                for Parameter { name, default } in parameters {
                    let names = machine.frames.get(machine.current).map(|frame| &frame.names);
                    machine.budget.step(1 + names.map_or(0, Vec::len) / 16)?;
                    if names.is_some_and(|names| names.iter().any(|(n, _)| n == name)) {
                        continue;
                    }
                    let value = match default {
                        Some(default) => machine.evaluate(default)?,
                        None => Value::Undefined,
                    };
                    machine.set(name, value)?;
                }
                machine.block(&bound.code.body).map(|_| ())
            })
        })
    }
}
