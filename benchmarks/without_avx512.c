/* Hides AVX-512, VNNI and AMX from a process, so that it computes as on a CPU with AVX2 only.

       cc -shared -fPIC -O2 without_avx512.c -o without_avx512.so
       LD_PRELOAD=./without_avx512.so PROGRAM

   Linux on x86-64, where the CPU can make CPUID fault (`cpuid_fault` in /proc/cpuinfo): each CPUID
   of the program then raises SIGSEGV, and is answered here without those instruction sets. All else
   runs at full speed. Programs that read /proc/cpuinfo instead of asking the CPU still see them; those
   with a handler of their own for SIGSEGV end (pytest: -p no:faulthandler). */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012 /* arch_prctl(2) */
#define BIT(number) (1u << (number))

static struct sigaction earlier;

static int let_cpuid_run(int allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void answer(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (info->si_code != SI_KERNEL || code[0] != 0x0F || code[1] != 0xA2) { /* not a CPUID */
        sigaction(signal, &earlier, NULL);
        return;
    }
    const uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX];
    uint32_t a = leaf, b, c = part, d;
    let_cpuid_run(1);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    let_cpuid_run(0);
    if (leaf == 7 && part == 0) {
        /* avx512: f, dq, ifma, pf, er, cd, bw, vl */
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* avx512: vbmi, vbmi2, vnni, bitalg, vpopcntdq */
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        /* avx512: 4vnniw, 4fmaps, vp2intersect; amx_bf16, avx512_fp16, amx_tile, amx_int8 */
        d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && part == 1) {
        /* avx_vnni, avx512_bf16, amx_fp16, avx_ifma */
        a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
        /* avx_vnni_int8, avx_ne_convert, amx_complex, avx_vnni_int16, avx10 */
        d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, &earlier);
    if (let_cpuid_run(0) != 0) {
        perror("This CPU, or this Linux, cannot make CPUID fault");
        _exit(3);
    }
}
