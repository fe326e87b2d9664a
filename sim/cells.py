"""Models of FPGA cells, in Verilog: those that Yosys has none of, or none that it can map itself.

They follow the descriptions by which Yosys maps to these cells. Where a cell's output is not
defined, a model gives what nobody can want, such as the complement of the stored word. A parameter
that a model does not know refers to a module that does not exist, which Yosys refuses.
"""

__all__ = ["ECP5_CELLS", "ICE40_CELLS", "SPRAM"]


def _ports(direction: str, name: str, count: int) -> str:
    return ", ".join(f"{direction} {name}{index}" for index in range(count))


def _bus(name: str, count: int) -> str:
    return "{" + ", ".join(f"{name}{index}" for index in reversed(range(count))) + "}"


def _memory_port(own: str, other: str) -> str:
    """Make one of the ports of DP16KD."""
    return f"""
  wire clock_{own} = CLK{own}MUX == "INV" ? ~CLK{own} : CLK{own};
  wire [13:0] at_{own} = {_bus(f"AD{own}", 14)};
  wire [9:0] word_{own} = DATA_WIDTH_{own} == 36 ? {{at_{own}[13:5], 1'b0}} : at_{own}[13:4];
  wire [9:0] odd_{own} = {{word_{own}[9:1], 1'b1}};
  wire [4:0] shift_{own} =
      DATA_WIDTH_{own} == 9 ? (at_{own}[3] ? 9 : 0) :
      DATA_WIDTH_{own} == 4 ? (at_{own}[3] ? 9 : 0) + {{at_{own}[2], 2'b00}} :
      DATA_WIDTH_{own} == 2 ? (at_{own}[3] ? 9 : 0) + {{at_{own}[2:1], 1'b0}} :
      DATA_WIDTH_{own} == 1 ? (at_{own}[3] ? 9 : 0) + at_{own}[2:0] : 0;
  wire [17:0] given_{own} = {_bus(f"DI{own}", 18)};
  wire [17:0] ones_{own} =
      DATA_WIDTH_{own} == 1 ? 18'h1 : DATA_WIDTH_{own} == 2 ? 18'h3 :
      DATA_WIDTH_{own} == 4 ? 18'hf : 18'h1ff;
  // Which bits are written: wide words have an enable for each nine of them.
  wire [17:0] mask_{own} = DATA_WIDTH_{own} >= 18 ?
      {{{{9{{at_{own}[1]}}}}, {{9{{at_{own}[0]}}}}}} : ones_{own} << shift_{own};
  // Of 36 bits, the upper half goes to the next word.
  wire [17:0] high_mask_{own} = DATA_WIDTH_{own} == 36 ?
      {{{{9{{at_{own}[3]}}}}, {{9{{at_{own}[2]}}}}}} : 18'h0;
  wire [17:0] data_{own} = DATA_WIDTH_{own} >= 18 ? given_{own} : given_{own} << shift_{own};
  wire does_write_{own} = CE{own} & WE{own} & ~(RST{own} & RESETMODE == "SYNC");
  // What is read of a bit that the other port writes is not defined.
  wire [17:0] lost_{own} = {{18{{does_write_{other}}}}} & (
      {{18{{word_{own} == word_{other}}}}} & mask_{other} |
      {{18{{word_{own} == odd_{other}}}}} & high_mask_{other});
  wire [17:0] high_lost_{own} = {{18{{does_write_{other}}}}} & (
      {{18{{odd_{own} == word_{other}}}}} & mask_{other} |
      {{18{{odd_{own} == odd_{other}}}}} & high_mask_{other});
  wire [17:0] stored_{own} = memory[word_{own}];
  wire [17:0] high_stored_{own} = memory[odd_{own}];
  wire [17:0] through_{own} = does_write_{own} & WRITEMODE_{own} == "WRITETHROUGH" ?
      stored_{own} & ~mask_{own} | data_{own} & mask_{own} : stored_{own};
  reg [17:0] low_{own} = 0, high_{own} = 0;
  reg [4:0] shifted_{own} = 0;
  always @(posedge clock_{own})
    if (RST{own}) begin
      low_{own} <= 0;
      high_{own} <= 0;
    end else if (CE{own} & ~(does_write_{own} & WRITEMODE_{own} == "NORMAL")) begin
      low_{own} <= through_{own} ^ lost_{own};
      high_{own} <= high_stored_{own} ^ high_lost_{own};
      shifted_{own} <= shift_{own};
    end
  wire [17:0] shown_{own} = {{18{{~(RST{own} & RESETMODE == "ASYNC")}}}};
  wire [17:0] taken_{own} = shown_{own} & (DATA_WIDTH_{own} >= 18 ? low_{own} :
      low_{own} >> shifted_{own} & ones_{own});
  integer bit_{own};
  always @(posedge clock_{own})
    if (does_write_{own}) begin
      for (bit_{own} = 0; bit_{own} < 18; bit_{own} = bit_{own} + 1)
        if (mask_{own}[bit_{own}])
          memory[word_{own}][bit_{own}] <= data_{own}[bit_{own}];
    end"""


def _initial_words() -> str:
    names = [f"INITVAL_{index:02X}" for index in range(64)]
    parameters = "\n".join(f"  parameter [319:0] {name} = 320'h0;" for name in names)
    return f"{parameters}\n  localparam [20479:0] INITIAL = {{{', '.join(reversed(names))}}};"


ECP5_CELLS = f"""
// 1024 words of 18 bits, two ports of 1, 2, 4, 9 or 18 bits; or port A writes 36 bits, port B reads
// 18 or 36. Narrow words of 1, 2 and 4 bits leave out every ninth bit.
module DP16KD(
  {_ports("input", "ADA", 14)}, {_ports("input", "ADB", 14)},
  {_ports("input", "DIA", 18)}, {_ports("input", "DIB", 18)},
  input CLKA, CEA, OCEA, WEA, RSTA, CSA0, CSA1, CSA2,
  input CLKB, CEB, OCEB, WEB, RSTB, CSB0, CSB1, CSB2,
  {_ports("output", "DOA", 18)}, {_ports("output", "DOB", 18)}
);
  parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18;
  parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL";
  parameter REGMODE_A = "NOREG", REGMODE_B = "NOREG", RESETMODE = "SYNC";
  parameter ASYNC_RESET_RELEASE = "SYNC", GSR = "AUTO";
  parameter CLKAMUX = "CLKA", CLKBMUX = "CLKB", CSDECODE_A = "0b000", CSDECODE_B = "0b000";
{_initial_words()}
  generate if (REGMODE_A != "NOREG" | REGMODE_B != "NOREG" |
      CSDECODE_A != "0b000" | CSDECODE_B != "0b000") begin
    unknown_mode_of_DP16KD refuse();
  end endgenerate
  reg [17:0] memory [0:1023];
  integer number;
  initial for (number = 0; number < 1024; number = number + 1)
    memory[number] = INITIAL[number / 16 * 320 + number % 16 * 20 +: 18];
{_memory_port("A", "B")}
{_memory_port("B", "A")}
  integer high_bit;
  always @(posedge clock_A)
    if (does_write_A)
      for (high_bit = 0; high_bit < 18; high_bit = high_bit + 1)
        if (high_mask_A[high_bit])
          memory[odd_A][high_bit] <= given_B[high_bit];
  assign {_bus("DOA", 18)} = DATA_WIDTH_B == 36 ? low_B & shown_B : taken_A;
  assign {_bus("DOB", 18)} = DATA_WIDTH_B == 36 ? high_B & shown_B : taken_B;
endmodule

// A multiplier without registers.
module MULT18X18D(
  {_ports("input", "A", 18)}, {_ports("input", "B", 18)}, {_ports("input", "C", 18)},
  input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  {_ports("input", "CLK", 4)}, {_ports("input", "CE", 4)}, {_ports("input", "RST", 4)},
  {_ports("input", "SRIA", 18)}, {_ports("input", "SRIB", 18)},
  {_ports("output", "SROA", 18)}, {_ports("output", "SROB", 18)},
  {_ports("output", "ROA", 18)}, {_ports("output", "ROB", 18)}, {_ports("output", "ROC", 18)},
  {_ports("output", "P", 36)}, output SIGNEDP
);
  parameter REG_INPUTA_CLK = "NONE", REG_INPUTB_CLK = "NONE", REG_INPUTC_CLK = "NONE";
  parameter REG_PIPELINE_CLK = "NONE", REG_OUTPUT_CLK = "NONE";
  generate if (REG_INPUTA_CLK != "NONE" | REG_INPUTB_CLK != "NONE" |
      REG_PIPELINE_CLK != "NONE" | REG_OUTPUT_CLK != "NONE") begin
    unknown_mode_of_MULT18X18D refuse();
  end endgenerate
  wire [17:0] a = {_bus("A", 18)};
  wire [17:0] b = {_bus("B", 18)};
  wire signed [35:0] wide_a = {{{{18{{SIGNEDA & a[17]}}}}, a}};
  wire signed [35:0] wide_b = {{{{18{{SIGNEDB & b[17]}}}}, b}};
  assign {_bus("P", 36)} = wide_a * wide_b;
  assign SIGNEDP = SIGNEDA | SIGNEDB;
endmodule

// The clock of the simulation stands for the one that the PLL makes, stable from the start.
module EHXPLLL(
  input CLKI, CLKFB, RST, STDBY, PHASESEL1, PHASESEL0, PHASEDIR, PHASESTEP, PHASELOADREG,
  input PLLWAKESYNC, ENCLKOP,
  output CLKOP, LOCK
);
  parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 1, CLKOP_CPHASE = 0, CLKOP_FPHASE = 0;
  parameter PLLRST_ENA = "", INTFB_WAKE = "", STDBY_ENABLE = "", DPHASE_SOURCE = "";
  parameter OUTDIVIDER_MUXA = "", CLKOP_ENABLE = "", FEEDBK_PATH = "";
  assign CLKOP = CLKI;
  assign LOCK = 1'b1;
endmodule

// A pin in one direction.
module TRELLIS_IO(inout B, input I, input T, output O);
  parameter DIR = "INPUT";
  generate
    if (DIR == "INPUT") assign O = B;
    else if (DIR == "OUTPUT") assign B = I;
    else unknown_mode_of_TRELLIS_IO refuse();
  endgenerate
endmodule
"""


SPRAM = """
// 16384 words of 16 bits, of which one is read or written in a cycle.
module SB_SPRAM256KA(
  input [13:0] ADDRESS,
  input [15:0] DATAIN,
  input [3:0] MASKWREN,
  input WREN, CHIPSELECT, CLOCK, STANDBY, SLEEP, POWEROFF,
  output reg [15:0] DATAOUT
);
  reg [15:0] memory [0:16383];
  wire [15:0] mask = {{4{MASKWREN[3]}}, {4{MASKWREN[2]}}, {4{MASKWREN[1]}}, {4{MASKWREN[0]}}};
  wire works = ~STANDBY & ~SLEEP & POWEROFF;
  integer index;
  always @(posedge CLOCK)
    if (CHIPSELECT & works) begin
      // After a write, what is read is not defined.
      DATAOUT <= WREN ? ~DATAIN : memory[ADDRESS];
      for (index = 0; index < 16; index = index + 1)
        if (WREN & mask[index])
          memory[ADDRESS][index] <= DATAIN[index];
    end
endmodule
"""
"""The single-port memory of an iCE40 UltraPlus (Lattice FPGA-TN-02022)."""

ICE40_CELLS = (
    SPRAM
    + """
// The clock of the simulation stands for the one that the PLL makes, stable from the start.
module SB_PLL40_PAD(
  input PACKAGEPIN, EXTFEEDBACK, BYPASS, RESETB, LATCHINPUTVALUE, SDI, SCLK,
  input [7:0] DYNAMICDELAY,
  output PLLOUTCORE, PLLOUTGLOBAL, LOCK, SDO
);
  parameter FEEDBACK_PATH = "SIMPLE", DIVR = 0, DIVF = 0, DIVQ = 0, FILTER_RANGE = 0;
  assign PLLOUTCORE = PACKAGEPIN;
  assign PLLOUTGLOBAL = PACKAGEPIN;
  assign LOCK = 1'b1;
endmodule

// A pin in one direction: a disabled output is low.
module SB_IO(
  inout PACKAGE_PIN,
  input LATCH_INPUT_VALUE, CLOCK_ENABLE, INPUT_CLK, OUTPUT_CLK, OUTPUT_ENABLE, D_OUT_0, D_OUT_1,
  output D_IN_0, D_IN_1
);
  parameter [5:0] PIN_TYPE = 6'b000001;
  parameter [0:0] PULLUP = 1'b0;
  parameter [0:0] NEG_TRIGGER = 1'b0;
  parameter IO_STANDARD = "SB_LVCMOS";
  generate
    if (PIN_TYPE == 6'b000001) assign D_IN_0 = PACKAGE_PIN;
    else if (PIN_TYPE == 6'b011001) assign PACKAGE_PIN = D_OUT_0;
    else if (PIN_TYPE == 6'b101001) assign PACKAGE_PIN = D_OUT_0 & OUTPUT_ENABLE;
    else unknown_mode_of_SB_IO refuse();
  endgenerate
endmodule
"""
)
