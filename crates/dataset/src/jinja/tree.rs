//! What a parsed template is made of.

use std::sync::Arc;

use super::value::Value;

/// Statements in a row.
pub(super) type Block = Vec<Node>;

/// A statement and the line it stands on.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) statement: Statement,
}

#[derive(Debug)]
pub(super) enum Statement {
    Text(Arc<str>),
    Emit(Expression),
    If {
        branches: Vec<(Expression, Block)>,
        otherwise: Block,
    },
    For(For),
    Set {
        target: Target,
        value: Expression,
    },
    /// `{% set name | filters %}…{% endset %}`
    SetBlock {
        target: Target,
        filters: Vec<Suffix>,
        body: Block,
    },
    With {
        names: Vec<(Arc<str>, Expression)>,
        body: Block,
    },
    Filter {
        filters: Vec<Suffix>,
        body: Block,
    },
    Macro(Arc<Macro>),
    /// `{% call(parameters) callee %}…{% endcall %}`
    Call {
        callee: Expression,
        caller: Arc<Macro>,
    },
    /// `{% generation %}…{% endgeneration %}`: the assistant's own words.
    Generation(Block),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) over: Expression,
    pub(super) only: Option<Expression>,
    pub(super) body: Block,
    pub(super) otherwise: Block,
}

/// What a value is stored in.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
    Several(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Arc<str>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Block,
}

#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: Arc<str>,
    pub(super) default: Option<Expression>,
}

/// Chains of operators and of suffixes are flat, so that their length adds nothing to the depth.
#[derive(Debug)]
pub(super) enum Expression {
    Constant(Value),
    Name(Arc<str>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Positive(Box<Expression>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    Arithmetic(Box<Expression>, Vec<(Operator, Expression)>),
    Conditional(Box<Conditional>),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Postfix(Box<Expression>, Vec<Suffix>),
}

#[derive(Debug)]
pub(super) struct Conditional {
    pub(super) condition: Expression,
    pub(super) then: Expression,
    pub(super) otherwise: Option<Expression>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Concatenate,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

/// What follows an expression.
#[derive(Debug)]
pub(super) enum Suffix {
    Attribute(Arc<str>),
    Item(Expression),
    Slice(Box<[Option<Expression>; 3]>),
    Call(Arguments),
    Filter(Arc<str>, Arguments),
    Test(Test),
}

#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: Arc<str>,
    pub(super) arguments: Arguments,
    pub(super) negated: bool,
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expression>,
    pub(super) named: Vec<(Arc<str>, Expression)>,
    /// `*list`
    pub(super) rest: Option<Box<Expression>>,
    /// `**dict`
    pub(super) rest_named: Option<Box<Expression>>,
}
