"""A walk over every way through a function: which instructions can be reached, and what is known when they are.

Abstract interpretation over the control-flow graph (Cousot and Cousot 1977): where two ways meet, what differs becomes UNKNOWN. What
memory holds may be assumed; then the conditions that follow from it choose the ways. Everything is bounded: a function that takes too
many steps is an Obstacle.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from exitguard.facts.machine_code.image import Image
from exitguard.facts.machine_code.instructions import Decoded, Immediate, Memory, Operand, Register, decode
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.state import (
    ARGUMENTS,
    STACK,
    Flags,
    State,
    address_of,
    condition_of,
    entry_state,
    given_away,
    join,
    on_stack,
    stack_offset,
    truth,
)
from exitguard.facts.machine_code.values import (
    DEEPEST,
    UNKNOWN,
    WORD_BYTES,
    ZERO,
    Argument,
    Both,
    Condition,
    Constant,
    Load,
    Lowest,
    Result,
    Scanned,
    Sum,
    Truth,
    Unknown,
    Value,
    add,
    assume_in,
    both,
    bounded,
    depth,
    either,
    known,
    narrow,
    parts,
    written,
)
from exitguard.facts.machine_code.ways import Call, Edge, Store, Walk

_MOST_INSTRUCTIONS = 4_000
_MOST_STEPS = 60_000
#: A write of as many bytes clears the rest of the register; a shorter one leaves it.
_CLEARS_THE_REST = 4
_PER_CPU = Argument("the data of a CPU")
#: What a call may change (System V AMD64 ABI, 3.2.1), which the kernel's C code follows.
_CLOBBERED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
#: Called at a function's entry, and known to change no register: ftrace's hook.
_ENTRY_HOOKS = frozenset({"__fentry__", "mcount", "__fentry__.cold", "ftrace_caller", "ftrace_regs_caller"})
STACK_CHECK = "__stack_chk_fail"
NEVER_RETURN = frozenset({STACK_CHECK, "panic", "__fortify_panic", "fortify_panic", "__ubsan_handle_builtin_unreachable"})

#: Instructions of no interest that leave the flags alone; of any other it is not known.
_KEEP_FLAGS = frozenset(
    {"not", "bswap", "cdqe", "cwde", "cdq", "cqo", "cbw", "xchg", "movups", "movaps", "movdqu", "movdqa", "movq", "movd"}
)
#: Ways out that are no return of a C function.
_LEAVE = frozenset({"retf", "retfq", "iretq", "iret", "sysret", "sysretq", "sysexit", "syscall", "sysenter", "ljmp", "lcall"})
#: Instructions of no interest whose effects on registers are known from their operands.
_PLAIN = frozenset(
    """not neg bswap cdqe cwde cdq cqo cbw cwd shl sal shr sar rol ror rcl rcr shld shrd adc sbb imul mul div idiv bt bts btr btc popcnt
    xchg xadd cmpxchg movbe andn blsr blsi blsmsk bextr shlx shrx sarx rorx movups movaps movdqu movdqa movq movd pxor xorps
    stosb stosw stosd stosq movsb movsw movsd movsq""".split()  # noqa: SIM905 - a list to read
)
#: Instructions that may write any number of bytes.
_STRINGS = ("stos", "movsb", "movsw", "movsd", "movsq", "xsave", "fxsave")
#: Instructions whose first operand is read, and not written.
_ONLY_READ = frozenset({"bt", "mul", "imul", "div", "idiv", "prefetcht1", "prefetcht2", "prefetchnta", "clflush"})


def callee_state(call: Call) -> State:
    """The state at the entry of what a call leads to: its arguments, as far as they are made of the caller's own."""
    return entry_state(*(_handed_over(call.state.register(name)) for name in ARGUMENTS))


def _handed_over(value: Value) -> Value:
    """An argument of a call; what is made of the caller's registers or stack would be taken for the callee's own."""
    foreign = any(isinstance(part, Argument) and part.name not in ("vcpu", "kvm") for part in parts(value))
    return UNKNOWN if foreign else value


def walk(image: Image, entry: int, state: State, *, assumed: Mapping[Load, int], stays: Callable[[int], bool]) -> Walk:
    """Every way through the code at `entry`. `stays(address)` says whether a jump to there is followed, or ends the walk as a call."""
    return _Walker(image, entry, assumed, stays).run(state)


class _Walker:
    def __init__(self, image: Image, entry: int, assumed: Mapping[Load, int], stays: Callable[[int], bool]) -> None:
        self._image = image
        self._assumed = assumed
        self._stays = stays
        self._walk = Walk(entry)

    def run(self, state: State) -> Walk:
        pending = [self._walk.entry]
        self._walk.states[self._walk.entry] = state
        for _ in range(_MOST_STEPS):
            if not pending:
                return self._walk
            address = pending.pop()
            for edge, after in self._step(address):
                if edge.to is None:
                    continue
                before = self._walk.states.get(edge.to)
                joined = after if before is None else join(before, after)
                if before is None or joined != before:
                    self._walk.states[edge.to] = joined
                    pending.append(edge.to)
        raise Obstacle(f"{self._place(self._walk.entry)} has too many ways through it to follow them all")

    def _place(self, address: int) -> str:
        return self._image.place(address)

    def _decode(self, address: int) -> Decoded:
        found = self._walk.instructions.get(address)
        if found is None:
            if len(self._walk.instructions) == _MOST_INSTRUCTIONS:
                raise Obstacle(f"{self._place(self._walk.entry)} has more than {_MOST_INSTRUCTIONS} instructions")
            try:
                found = decode(self._bytes(address), address)
            except Obstacle as obstacle:
                raise Obstacle(f"{self._place(address)}: {obstacle}") from None
            self._walk.instructions[address] = found
            for at in range(address, found.after):
                if at in self._image.patch_sites:
                    self._walk.patched[address] = self._image.patch_sites[at]
        return found

    def _bytes(self, address: int) -> bytes:
        for size in range(15, 0, -1):
            try:
                return self._image.memory.read(address, size)
            except Obstacle:
                if size == 1:
                    raise
        raise AssertionError  # the loop returns or raises

    def _step(self, address: int) -> list[tuple[Edge, State]]:
        instruction = self._decode(address)
        state = self._walk.states[address]
        # What an earlier, narrower state showed may not hold any more.
        for seen in (self._walk.calls, self._walk.stores, self._walk.masked):
            seen.pop(address, None)
        ways = self._ways(instruction, state)
        label = self._image.jump_labels.get(address)
        if label is not None:
            # As the kernel runs, this is a jump or it is none: both ways are open, and what decides is no value that the code reads.
            untold = Condition(Argument("a static key"), "!=", ZERO, 1)
            ways = [(Edge(instruction.after, untold.opposite), state), (self._jump(instruction, label, state, untold), state)]
        self._walk.edges[address] = tuple(edge for edge, _ in ways)
        return ways

    def _ways(self, instruction: Decoded, state: State) -> list[tuple[Edge, State]]:
        mnemonic = instruction.mnemonic.rpartition(" ")[2]  # `notrack jmp`, `bnd ret`, `lock or`
        if mnemonic == "jmp":
            target = _target(instruction)
            return [(self._jump(instruction, target, state, None), state)]
        if mnemonic == "call":
            return self._call(instruction, state)
        if mnemonic == "ret":
            if state.register("rsp") != STACK:
                raise Obstacle(
                    f"the return at {self._place(instruction.address)} leads to what was put on the stack, which is not followed"
                )
            return [(Edge(None), state)]
        if mnemonic in _LEAVE:
            raise Obstacle(f"`{instruction.text}` at {self._place(instruction.address)}: where it leads is not known")
        if mnemonic == "int3":
            raise Obstacle(f"a breakpoint at {self._place(instruction.address)}: the code is being traced or debugged (a kprobe?)")
        if mnemonic in ("ud2", "ud1", "ud0", "hlt"):
            return self._after_trap(instruction, state)
        if mnemonic.startswith("j"):
            return self._branch(instruction, mnemonic[1:], state)
        if mnemonic.startswith("loop") or mnemonic == "xbegin":
            raise Obstacle(f"`{instruction.text}` at {self._place(instruction.address)}, which the kernel's C code does not use")
        return [(Edge(instruction.after), self._compute(instruction, mnemonic, state))]

    def _after_trap(self, instruction: Decoded, state: State) -> list[tuple[Edge, State]]:
        """`ud2` ends a way, or is WARN_ON's trap, which returns behind it: taken for both."""
        if instruction.mnemonic == "ud2" and self._in_function(instruction.after):
            return [(Edge(instruction.after), state)]
        return [(Edge(None), state)]

    def _in_function(self, address: int) -> bool:
        here, there = self._image.function_at(address - 1), self._image.function_at(address)
        return here is not None and here == there

    def _jump(self, instruction: Decoded, target: int | None, state: State, condition: Condition | None) -> Edge:
        if target is None:  # through a register: a tail call to what a pointer names, or a switch
            self._walk.calls[instruction.address] = Call(instruction.address, None, self._pointed(instruction, state), state, is_jump=True)
            return Edge(None, condition)
        name = self._image.name_at(target)
        if name is not None and _is_return(name):
            return Edge(None, condition)
        if name is not None and is_indirect(name):
            self._walk.calls[instruction.address] = Call(instruction.address, None, None, state, is_jump=True)
            return Edge(None, condition)
        if self._stays(target):
            return Edge(target, condition)
        self._walk.calls[instruction.address] = Call(instruction.address, target, name, state, is_jump=True)
        return Edge(None, condition)

    def _call(self, instruction: Decoded, state: State) -> list[tuple[Edge, State]]:
        target = _target(instruction)
        name = self._image.name_at(target) if target is not None else self._pointed(instruction, state)
        if name in _ENTRY_HOOKS or (self._image.live and self._is_entry_hook(instruction)):
            return [(Edge(instruction.after), state)]
        pointer = self._pointer(instruction, name, state)
        if name is not None and target is not None and is_indirect(name):
            target, name = None, None
        self._walk.calls[instruction.address] = Call(instruction.address, target, name, state, pointer=pointer)
        if name in NEVER_RETURN:
            return [(Edge(None), state)]
        registers = {each: value for each, value in state.registers.items() if each not in _CLOBBERED}
        registers["rax"] = Result(name, instruction.address)
        escaped = state.escaped or any(on_stack(state.register(each)) for each in ARGUMENTS)
        return [
            (
                Edge(instruction.after),
                replace(state, registers=registers, stack={} if escaped else state.stack, flags=None, escaped=escaped),
            )
        ]

    def _is_entry_hook(self, instruction: Decoded) -> bool:
        """Where a running kernel traces a function, the call at its entry leads to a trampoline of ftrace, which keeps every register."""
        first = self._walk.entry
        before = self._walk.instructions.get(first)
        return instruction.address == first or (before is not None and before.mnemonic == "endbr64" and instruction.address == before.after)

    def _pointer(self, instruction: Decoded, name: str | None, state: State) -> Value:
        """What an indirect call calls; a retpoline is named after the register that has it."""
        if name is not None and is_indirect(name):
            return state.register(name.rpartition("_")[2])
        operand = instruction.operands[0] if instruction.operands else None
        return self._read(operand, state) if isinstance(operand, Register | Memory) else UNKNOWN

    def _pointed(self, instruction: Decoded, state: State) -> str | None:
        """The name of the memory that holds the address of an indirect call: `kvm_x86_ops+0x158` has none of its own."""
        operand = instruction.operands[0] if instruction.operands else None
        value = self._read(operand, state) if operand is not None else UNKNOWN
        match value:
            case Load(Constant(address), _):
                return self._image.name_at(address)
            case _:
                return None

    def _branch(self, instruction: Decoded, predicate: str, state: State) -> list[tuple[Edge, State]]:
        target = _target(instruction)
        if target is None:
            raise Obstacle(f"`{instruction.text}` at {self._place(instruction.address)} has no target")
        condition = self._condition(predicate, state)
        if condition is None:
            condition = Condition(UNKNOWN, "!=", ZERO, 8)
        settled = condition.settled
        ways: list[tuple[Edge, State]] = []
        if settled is not False:
            ways.append((self._jump(instruction, target, state, condition), state))
        if settled is not True:
            ways.append((Edge(instruction.after, condition.opposite), state))
        return ways

    def _condition(self, predicate: str, state: State) -> Condition | None:
        condition = condition_of(predicate, state.flags)
        return condition if condition is None or not self._assumed else assume_in(condition, self._assumed)

    def _compute(self, instruction: Decoded, mnemonic: str, state: State) -> State:  # noqa: C901, PLR0912 - one case an instruction
        operands = instruction.operands
        match mnemonic, operands:
            case ("mov" | "movabs" | "movzx", (target, source)):
                return self._write(instruction, target, self._read(source, state), state)
            case ("movsx" | "movsxd", (target, source)):
                value = self._read(source, state)
                # A truth and the number of a bit have no sign to extend.
                return self._write(instruction, target, value if isinstance(value, Truth | Scanned) else UNKNOWN, state)
            case ("lea", (target, Memory() as source)):
                return self._write(instruction, target, address_of(source, state), given_away(state, source))
            case ("push", (source,)):
                value = self._read(source, state)
                lower = add(state.register("rsp"), -8)
                moved = replace(state, registers={**state.registers, "rsp": lower})
                return self._put(instruction, lower, 8, value, moved)
            case ("pop", (target,)):
                top = state.register("rsp")
                value = self._load(top, 8, state)
                moved = replace(state, registers={**state.registers, "rsp": add(top, 8)})
                return self._write(instruction, target, value, moved)
            case ("leave", ()):
                frame = state.register("rbp")
                saved = self._load(frame, 8, state)
                return replace(state, registers={**state.registers, "rsp": add(frame, 8), "rbp": saved})
            case ("cmp", (left, right)):
                flags = Flags(self._read(left, state), self._read(right, state), _size(left), "compare")
                return replace(state, flags=flags)
            case ("test", (left, right)):
                value = self._masked(left, right, state)
                self._note_mask(instruction, value)
                return replace(state, flags=Flags(narrow(value, _size(left)), ZERO, _size(left), "logic"))
            case ("and" | "or" | "xor" | "sub" | "add", (target, source)):
                return self._combine(instruction, mnemonic, target, source, state)
            case ("inc" | "dec", (target,)):
                value = narrow(add(self._read(target, state), 1 if mnemonic == "inc" else -1), _size(target))
                after = self._write(instruction, target, value, state)
                return replace(after, flags=Flags(value, ZERO, _size(target), "result"))
            case ("nop" | "endbr64" | "lfence" | "pause" | "prefetcht0" | "prefetchw", _):
                return state
            case ("tzcnt" | "bsf" | "lzcnt" | "bsr", (target, source)):
                return self._scan(instruction, target, source, state)
            case _ if mnemonic.startswith("set") and len(operands) == 1:
                return self._write(instruction, operands[0], truth(self._condition(mnemonic[3:], state)), state)
            case _ if mnemonic.startswith("cmov"):
                return self._choose(instruction, mnemonic[4:], state)
            case _:
                return self._anything(instruction, mnemonic, state)

    def _combine(self, instruction: Decoded, mnemonic: str, target: Operand, source: Operand, state: State) -> State:
        size = _size(target)
        left, right = self._read(target, state), self._read(source, state)
        if mnemonic in ("xor", "sub") and target == source:
            value: Value = ZERO  # whatever it was
        elif mnemonic in ("and", "or") and target == source:
            value = left
        else:
            combined = both(mnemonic, left, right)  # type: ignore[arg-type] # one of five, as matched above
            value = combined if isinstance(combined, Sum) and size == WORD_BYTES else narrow(combined, size)
        if mnemonic == "and":
            self._note_mask(instruction, value)
        if (on_stack(left) or on_stack(right)) and not on_stack(value):
            state = replace(state, escaped=True)
        after = self._write(instruction, target, value, state)
        match mnemonic:
            case "sub":
                flags = Flags(left, right, size, "compare")
            case "add":
                flags = Flags(value, ZERO, size, "result")
            case _:
                flags = Flags(value, ZERO, size, "logic")
        return replace(after, flags=flags)

    def _masked(self, left: Operand, right: Operand, state: State) -> Value:
        value = self._read(left, state)
        # One register with itself is what it holds; two loads of one place may differ.
        return value if left == right and isinstance(left, Register) else both("and", value, self._read(right, state))

    def _note_mask(self, instruction: Decoded, value: Value) -> None:
        if isinstance(value, Both) and value.operation == "and":
            self._walk.masked[instruction.address] = value

    def _scan(self, instruction: Decoded, target: Operand, source: Operand, state: State) -> State:
        value = self._read(source, state)
        self._walk.scanned.add(value)
        number = UNKNOWN if isinstance(value, Unknown | Lowest) else bounded(Scanned(value))
        return replace(self._write(instruction, target, number, state), flags=None)

    def _choose(self, instruction: Decoded, predicate: str, state: State) -> State:
        target, source = instruction.operands
        condition = self._condition(predicate, state)
        settled = condition.settled if condition is not None else None
        kept, moved = self._read(target, state), self._read(source, state)
        value = moved if settled is True else kept if settled is False else either(kept, moved)
        if settled is None and value == UNKNOWN and (on_stack(kept) or on_stack(moved)):
            state = replace(state, escaped=True)
        return self._write(instruction, target, value, state)  # a 32-bit cmov clears the upper half even where it moves nothing

    def _anything(self, instruction: Decoded, mnemonic: str, state: State) -> State:
        """An instruction of no interest: what it writes is unknown from here."""
        named = {operand.name for operand in instruction.operands if isinstance(operand, Register)}
        if mnemonic not in _PLAIN:
            # What it does is not known here: then nothing is known behind it.
            self._walk.stores[instruction.address] = Store(instruction.address, UNKNOWN, WORD_BYTES, UNKNOWN)
            return State({}, escaped=True)
        if mnemonic == "cmpxchg":
            named.add("rax")  # which no operand names
        if any(on_stack(state.register(name)) for name in named):
            state = replace(state, escaped=True)
        registers = {name: value for name, value in state.registers.items() if name not in instruction.writes | named}
        after = replace(state, registers=registers, flags=state.flags if mnemonic in _KEEP_FLAGS else None)
        first = instruction.operands[0] if instruction.operands else None
        if not instruction.writes_memory and not (isinstance(first, Memory) and mnemonic not in _ONLY_READ):
            return after
        target = next((operand for operand in instruction.operands if isinstance(operand, Memory)), None)
        if mnemonic.startswith(_STRINGS):
            target = None  # how much is written depends on rcx, and where it ends on the direction flag
        address = address_of(target, state) if target is not None and not target.segment else UNKNOWN
        return self._put(instruction, address, _size(target) if target is not None else 8, UNKNOWN, after)

    def _read(self, operand: Operand, state: State) -> Value:
        match operand:
            case Immediate(value, _):
                return Constant(value % (1 << 64))
            case Register(_, _, True):
                return UNKNOWN
            case Register(name, size, _):
                return narrow(state.register(name), size)
            case Memory():
                if operand.segment:
                    return UNKNOWN
                return self._load(address_of(operand, state), operand.size, state)

    def _load(self, address: Value, size: int, state: State) -> Value:
        offset = stack_offset(address)
        if offset is not None:
            held = state.stack.get(offset)
            return narrow(held[1], size) if held is not None and held[0] >= size else UNKNOWN
        if size not in (1, 2, 4, 8) or depth(address) >= DEEPEST or not known(address):
            return UNKNOWN
        load = Load(address, size)
        assumed = self._assumed.get(load)
        return load if assumed is None else Constant(assumed)

    def _write(self, instruction: Decoded, target: Operand, value: Value, state: State) -> State:
        if isinstance(target, Memory):
            address = address_of(target, state)
            return self._put(instruction, address, target.size, narrow(value, target.size), state)
        if not isinstance(target, Register):
            raise Obstacle(f"`{instruction.text}` at {self._place(instruction.address)} writes to a constant")
        if target.high:
            value = UNKNOWN
        elif target.size >= _CLEARS_THE_REST:
            value = narrow(value, target.size)
        else:
            value = written(state.register(target.name), value, target.size)
        escaped = state.escaped
        return replace(state, registers={**state.registers, target.name: value}, escaped=escaped)

    def _put(self, instruction: Decoded, address: Value, size: int, value: Value, state: State) -> State:
        if any(isinstance(operand, Memory) and operand.segment for operand in instruction.operands):
            # A CPU's own data is neither the stack nor a structure that is pointed at.
            self._walk.stores[instruction.address] = Store(instruction.address, _PER_CPU, size, value)
            return replace(state, escaped=state.escaped or on_stack(value))
        offset = stack_offset(address)
        if offset is None:
            self._walk.stores[instruction.address] = Store(instruction.address, address, size, value)
            escaped = state.escaped or on_stack(value)
            # Somewhere in memory: on the stack only where its address has been given away.
            return replace(state, escaped=escaped, stack={} if escaped or not known(address) else state.stack)
        kept = {at: held for at, held in state.stack.items() if at + held[0] <= offset or at >= offset + size}
        # The address of something on the stack that is put there itself may be an argument of the next call.
        return replace(state, stack={**kept, offset: (size, value)}, escaped=state.escaped or on_stack(value))


def _target(instruction: Decoded) -> int | None:
    operand = instruction.operands[0] if instruction.operands else None
    return operand.value % (1 << 64) if isinstance(operand, Immediate) else None


def _size(operand: Operand) -> int:
    return operand.size


def _is_return(name: str) -> bool:
    """Return thunks: __x86_return_thunk, srso_return_thunk, retbleed_return_thunk, its_return_thunk, call_depth_return_thunk ..."""
    return name.endswith("return_thunk")


def is_indirect(name: str) -> bool:
    """Retpolines: __x86_indirect_thunk_rax, __x86_indirect_call_thunk_rax, __x86_indirect_its_thunk_rax, __llvm_retpoline_r11 ..."""
    return name.startswith(("__x86_indirect_", "__llvm_retpoline_"))
