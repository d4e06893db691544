/* The process of a scenario: bare, so that it owns no anonymous page but the scenario's.
 *
 * No libc, no data, no bss; the stack is a shared memfd, the kernel's own stack is unmapped at the start. It is linked
 * at a fixed high address and everything of it lies in [WORKER, top of memory): all below belongs to the scenario.
 * Commands come through a pipe and answers go through another, whose descriptors all follow from the number of the
 * process (its slot), so that a child knows its own. When the other end of the pipe closes, the process ends.
 *
 * A command is 64-bit words: what, number of words that follow, the words. The answer is one word, -errno on failure.
 */

typedef unsigned long u64;
typedef long s64;

#define WORKER 0x7ff000000000UL
#define STACK 0x7ff100000000UL
#define STACK_SIZE 0x20000UL
#define NEXT_STACK 0x100000UL /* from the stack of one task in this memory to that of another */
#define ABOVE 0x7ff200000000UL
#define TOP 0x7ffffffff000UL
#define MAX_WORDS 1024

enum { DO_SYSCALL, DO_STORE, DO_TOUCH, DO_MEMSET, DO_FORK, DO_EXEC, DO_UFFD_WP, DO_TASK, DO_CALL_WITH };

enum {
    NR_read = 0, NR_write = 1, NR_close = 3, NR_mmap = 9, NR_munmap = 11, NR_rt_sigaction = 13, NR_ioctl = 16,
    NR_getpid = 39, NR_clone = 56, NR_execve = 59, NR_ftruncate = 77, NR_exit_group = 231, NR_memfd_create = 319,
    NR_userfaultfd = 323, NR_close_range = 436,
};

static inline s64 call(s64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
    register u64 r10 __asm__("r10") = d;
    register u64 r8 __asm__("r8") = e;
    register u64 r9 __asm__("r9") = f;
    s64 ret;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

#define call3(nr, a, b, c) call((nr), (u64)(a), (u64)(b), (u64)(c), 0, 0, 0)

/* Accesses to the scenario's memory. Any of them may fault; the signal handler then goes on at access_failed, which
 * works for all alike because none of them moves the stack pointer. */
s64 store_page(u64 addr, u64 first); /* 8 bytes, then zeros to the end of the page */
s64 read_byte(u64 addr);
s64 store_bytes(u64 addr, u64 byte, u64 length);
extern const char access_begin[], access_end[], access_failed[];

__asm__(".text\n"
        "access_begin:\n"
        "store_page:\n"
        "  mov %rsi, (%rdi)\n"
        "  add $8, %rdi\n"
        "  mov $511, %ecx\n"
        "  xor %eax, %eax\n"
        "  rep stosq\n"
        "  ret\n"
        "read_byte:\n"
        "  movzbl (%rdi), %eax\n"
        "  xor %eax, %eax\n"
        "  ret\n"
        "store_bytes:\n"
        "  mov %esi, %eax\n"
        "  mov %rdx, %rcx\n"
        "  rep stosb\n"
        "  xor %eax, %eax\n"
        "  ret\n"
        "access_end:\n"
        "access_failed:\n"
        "  mov $-14, %rax\n"
        "  ret\n"
        "restorer:\n"
        "  mov $15, %eax\n" /* rt_sigreturn */
        "  syscall\n");
extern const char restorer[];

static void on_fault(int signal, void *info, u64 *context)
{
    u64 *rip = context + 5 + 16; /* behind flags, link and stack: the 17th of the saved registers */
    (void)signal, (void)info;
    if (*rip < (u64)access_begin || *rip >= (u64)access_end)
        call3(NR_exit_group, 139, 0, 0);
    *rip = (u64)access_failed;
}

static s64 read_all(int fd, void *into, u64 length)
{
    for (u64 done = 0; done < length;) {
        s64 got = call3(NR_read, fd, (char *)into + done, length - done);
        if (got <= 0)
            return -1;
        done += got;
    }
    return 0;
}

/* Child of this process with its own stack: the shared one is not touched between the clone and the new mapping. The
 * child has no descriptor of the parent's from `first` on: what they hold (pinned pages, say) is the parent's. */
static s64 do_fork(u64 slot, u64 first)
{
    s64 ret;
    __asm__ volatile("mov %[slot], %%r12\n"
                     "mov %[first], %%r13\n"
                     "mov %[clone], %%eax\n"
                     "mov $0x8011, %%edi\n" /* CLONE_PARENT: whoever drives us waits for the child too; SIGCHLD */
                     "xor %%esi, %%esi\n"
                     "xor %%edx, %%edx\n"
                     "xor %%r10d, %%r10d\n"
                     "xor %%r8d, %%r8d\n"
                     "syscall\n"
                     "test %%rax, %%rax\n"
                     "jz new_stack\n"
                     : "=a"(ret)
                     : [slot] "r"(slot), [first] "r"(first), [clone] "i"(NR_clone)
                     : "rcx", "r11", "rdi", "rsi", "rdx", "r8", "r10", "r12", "r13", "memory");
    return ret;
}

/* A task in this process's memory (CLONE_VM) with a stack of its own there; with CLONE_VFORK in `flags` this returns
 * when it has ended or made itself a memory of its own. */
static s64 do_task(u64 slot, u64 first, u64 flags)
{
    char name[] = "stack";
    u64 stack = STACK + (slot + 1) * NEXT_STACK;
    s64 ret, fd = call3(NR_memfd_create, name, 1, 0);
    if (fd < 0)
        return fd;
    ret = call3(NR_ftruncate, fd, STACK_SIZE, 0);
    if (ret == 0)
        ret = call(NR_mmap, stack, STACK_SIZE, 3, 0x11, fd, 0);
    call3(NR_close, fd, 0, 0);
    if (ret < 0)
        return ret;
    __asm__ volatile("mov %[slot], %%r12\n"
                     "mov %[first], %%r13\n"
                     "xor %%edx, %%edx\n"
                     "xor %%r10d, %%r10d\n"
                     "xor %%r8d, %%r8d\n"
                     "syscall\n"
                     "test %%rax, %%rax\n"
                     "jz new_task\n"
                     : "=a"(ret)
                     : [slot] "r"(slot), [first] "r"(first), "a"(NR_clone), "D"(0x8111 | flags), /* CLONE_VM too */
                       "S"(stack + STACK_SIZE)
                     : "rcx", "r11", "rdx", "r8", "r10", "r12", "r13", "memory");
    return ret;
}

/* Entered without a stack, slot in r12: map a fresh memfd as the stack, go on in serve(slot, first). */
__asm__("new_stack:\n"
        "  mov $319, %eax\n" /* memfd_create */
        "  lea stack_name(%rip), %rdi\n"
        "  mov $1, %esi\n" /* close on exec */
        "  syscall\n"
        "  mov %rax, %r8\n"
        "  mov $77, %eax\n" /* ftruncate */
        "  mov %r8, %rdi\n"
        "  mov $0x20000, %esi\n"
        "  syscall\n"
        "  mov $9, %eax\n" /* mmap */
        "  mov $0x7ff100000000, %rdi\n"
        "  mov $0x20000, %esi\n"
        "  mov $3, %edx\n"     /* read, write */
        "  mov $0x11, %r10d\n" /* shared, fixed */
        "  xor %r9d, %r9d\n"
        "  syscall\n"
        "  cmp %rdi, %rax\n"
        "  jne no_stack\n"
        "  mov $3, %eax\n" /* close */
        "  mov %r8, %rdi\n"
        "  syscall\n"
        "  mov $0x7ff100020000, %rsp\n"
        "new_task:\n"
        "  xor %ebp, %ebp\n"
        "  mov %r12, %rdi\n"
        "  mov %r13, %rsi\n"
        "  call serve\n"
        "no_stack:\n"
        "  mov $231, %eax\n" /* exit_group */
        "  mov $99, %edi\n"
        "  syscall\n"
        ".section .rodata\n"
        "stack_name: .string \"stack\"\n"
        ".text\n");

static s64 do_exec(u64 slot)
{
    char number[8], name[] = "worker", path[] = "/proc/self/exe";
    char *args[] = {name, number, 0}, *none[] = {0};
    int at = 7;
    number[at] = 0;
    do
        number[--at] = '0' + slot % 10;
    while (slot /= 10);
    args[1] = number + at;
    return call3(NR_execve, path, args, none);
}

/* Write-protect a range by userfaultfd. A store to it is let through by the kernel itself where it can (asynchronous
 * write protection, Linux 6.7): there is nobody here to answer a fault. The descriptor stays open: closing undoes it. */
static s64 do_uffd_wp(u64 addr, u64 length)
{
    u64 reg[4] = {addr, length, 2, 0}, protect[3] = {addr, length, 1};
    s64 ret = 0, fd = -1;
    /* a store takes the protection away, or on old kernels fails */
    for (u64 bit = 15; bit >= 7; bit -= 8) {
        u64 api[3] = {0xaa, 1UL << bit, 0};
        fd = call3(NR_userfaultfd, 02000000, 0, 0);
        if (fd < 0)
            return fd;
        ret = call3(NR_ioctl, fd, 0xc018aa3f, api);
        if (ret != -22 || bit == 7)
            break;
        call3(NR_close, fd, 0, 0); /* one that was asked for too much is of no more use */
    }
    if (ret == 0)
        ret = call3(NR_ioctl, fd, 0xc020aa00, reg);
    if (ret == 0)
        ret = call3(NR_ioctl, fd, 0xc018aa06, protect);
    if (ret < 0)
        call3(NR_close, fd, 0, 0);
    return ret;
}

/* A system call with structures: words 0 to 6 are number and arguments, those named in the mask of word 7 are offsets,
 * in bytes from word 0, of what they point to. Word 8, if not 0, tells which word is the answer where the call does not
 * fail (-EAGAIN: it has done a part); word 9, if not 0, which word is such an offset as well. */
static s64 do_call_with(u64 *word)
{
    if (word[9])
        word[word[9]] += (u64)word;
    for (u64 i = 0; i < 6; i++)
        word[1 + i] += word[7] >> i & 1 ? (u64)word : 0;
    s64 ret = call(word[0], word[1], word[2], word[3], word[4], word[5], word[6]);
    return word[8] && (ret >= 0 || ret == -11) ? (s64)word[word[8]] : ret;
}

static s64 obey(u64 what, u64 n, u64 *word)
{
    s64 ret = 0;
    switch (what) {
    case DO_SYSCALL:
        return call(word[0], word[1], word[2], word[3], word[4], word[5], word[6]);
    case DO_STORE:
        for (u64 i = 0; i + 1 < n && ret == 0; i += 2)
            ret = store_page(word[i] << 12, __builtin_bswap64(word[i + 1]));
        return ret;
    case DO_TOUCH:
        for (u64 i = 0; i < n && ret == 0; i++)
            ret = read_byte(word[i] << 12);
        return ret;
    case DO_MEMSET:
        return store_bytes(word[0], word[1], word[2]);
    case DO_FORK:
        return do_fork(word[0], word[1]);
    case DO_EXEC:
        return do_exec(word[0]);
    case DO_UFFD_WP:
        return do_uffd_wp(word[0], word[1]);
    case DO_TASK:
        return do_task(word[0], word[1], word[2]);
    case DO_CALL_WITH:
        return do_call_with(word);
    }
    return -38;
}

__attribute__((noreturn, used)) void serve(u64 slot, u64 first)
{
    int commands = 3 + 2 * slot, answers = 4 + 2 * slot;
    u64 head[2], word[MAX_WORDS];
    s64 ret = call3(NR_getpid, 0, 0, 0); /* of a vfork child nobody else tells */
    if (first)
        call3(NR_close_range, first, ~0U, 0);
    u64 action[4] = {(u64)on_fault, 0x44000000 /* restorer, nodefer */ | 4 /* siginfo */, (u64)restorer, 0};
    call(NR_rt_sigaction, 11, (u64)action, 0, 8, 0, 0);
    call(NR_rt_sigaction, 7, (u64)action, 0, 8, 0, 0);
    call3(NR_munmap, ABOVE, TOP - ABOVE, 0); /* the stack that the kernel gave us, and the vdso */
    for (;;) {
        call3(NR_write, answers, &ret, 8);
        if (read_all(commands, head, sizeof head) || head[1] > MAX_WORDS || read_all(commands, word, 8 * head[1]))
            call3(NR_exit_group, 0, 0, 0);
        ret = obey(head[0], head[1], word);
    }
}

/* The arguments are read off the kernel's stack without writing to it more than exec did. */
__asm__(".globl _start\n"
        "_start:\n"
        "  mov 16(%rsp), %rsi\n" /* argv[1]: the slot in decimal */
        "  xor %r12d, %r12d\n"
        "  xor %r13d, %r13d\n"
        "1: movzbl (%rsi), %eax\n"
        "  test %eax, %eax\n"
        "  jz new_stack\n"
        "  imul $10, %r12, %r12\n"
        "  lea -48(%r12,%rax), %r12\n"
        "  inc %rsi\n"
        "  jmp 1b\n");
