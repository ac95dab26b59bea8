# The nested guest of the chain lab: one sector, which SeaBIOS loads at 0x7c00 and starts in real mode.
#
# Makes CPUID exits and says what they took: WARM_UP of them, then ROUNDS times PER_ROUND between two RDTSC. Each round's difference goes
# to -debugcon (port 0xe9) as one decimal line; a write to isa-debug-exit (port 0xf4) ends QEMU. What is counted of an exit is all that
# passed meanwhile: KVM's own path, and the three instructions of this loop.

        .set    WARM_UP, 200
        .set    PER_ROUND, 5000
        .set    ROUNDS, 9
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4

        .code16
        .globl  _start
_start:
        cli                             # the timer that SeaBIOS left running would make exits of its own
        cld
        ljmp    $0, $1f
1:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp

        movl    $WARM_UP, %esi
        call    make_exits
        movw    $ROUNDS, %bp
2:      rdtsc
        movl    %eax, %edi              # a round is far shorter than 2^32 ticks: the low half is enough
        movl    $PER_ROUND, %esi
        call    make_exits
        rdtsc
        subl    %edi, %eax
        call    print
        decw    %bp
        jnz     2b

        movb    $0, %al
        outb    %al, $DEBUG_EXIT
3:      hlt
        jmp     3b

make_exits:                             # %esi of them
        xorl    %eax, %eax
        cpuid
        decl    %esi
        jnz     make_exits
        ret

print:                                  # %eax in decimal, and a newline
        movl    $10, %ebx
        xorw    %cx, %cx
4:      xorl    %edx, %edx
        divl    %ebx
        pushw   %dx
        incw    %cx
        testl   %eax, %eax
        jnz     4b
5:      popw    %ax
        addb    $'0', %al
        outb    %al, $DEBUG_CONSOLE
        decw    %cx
        jnz     5b
        movb    $'\n', %al
        outb    %al, $DEBUG_CONSOLE
        ret

        .org    510
        .word   0xaa55                  # what makes a sector one to boot from
