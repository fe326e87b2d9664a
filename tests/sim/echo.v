// A small device with the ports of the real one. It takes a byte every third cycle at most and
// gives back what it took, six cycles later at the earliest, but swallows 00 and answers FF with
// the number of bytes taken since reset.
module ditto(
  input clk,
  input rst,
  input [7:0] i__payload,
  input i__valid,
  output i__ready,
  output [7:0] o__payload,
  output o__valid,
  input o__ready
);
  reg [7:0] memory [63:0];
  reg [5:0] head = 0;
  reg [5:0] tail = 0;
  reg [2:0] wait_in = 0;
  reg [2:0] wait_out = 0;
  reg [7:0] taken = 0;
  wire [5:0] next = head + 1;
  assign i__ready = wait_in == 0 && next != tail;
  assign o__valid = wait_out == 0 && head != tail;
  assign o__payload = memory[tail];
  always @(posedge clk) begin
    if (wait_in != 0) wait_in <= wait_in - 1;
    if (head == tail) wait_out <= 5;
    else if (wait_out != 0) wait_out <= wait_out - 1;
    if (i__valid && i__ready) begin
      wait_in <= 2;
      taken <= taken + 1;
      if (i__payload != 8'h00) begin
        memory[head] <= i__payload == 8'hff ? taken + 8'h01 : i__payload;
        head <= next;
      end
    end
    if (o__valid && o__ready) tail <= tail + 1;
    if (rst) begin
      head <= 0;
      tail <= 0;
      taken <= 0;
      wait_in <= 0;
      wait_out <= 0;
    end
  end
endmodule
