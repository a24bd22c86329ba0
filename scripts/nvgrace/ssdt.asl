// SPDX-License-Identifier: GPL-2.0
// What firmware says of a Grace GPU, about QEMU's bochs-display behind the third
// root port: where its memory is. The guest keeps 1.5 GiB of RAM aside for that,
// below 4 GiB, as integers have 32 bits in the tables of QEMU
DefinitionBlock ("", "SSDT", 2, "VFIO", "NVGRACE", 1)
{
    External (\_SB.PCI0, DeviceObj)

    /* Without hotplug QEMU describes neither the root port nor the device */
    Device (\_SB.PCI0.NVRP)
    {
        Name (_ADR, 0x00030000)

        Device (NVGP)
        {
            Name (_ADR, Zero)
            Name (_DSD, Package ()
            {
                ToUUID ("daffd814-6eba-4d8c-8a91-bc9bbf4aa301"),
                Package ()
                {
                    Package () { "nvidia,gpu-mem-base-pa", 0x10000000 },
                    Package () { "nvidia,gpu-mem-size", 0x60000000 },
                }
            })
        }
    }
}
